"""The engine sleeps while a stage trains, wakes for the candidate, and such candidates come first."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from evolve import validation
from evolve.engine import evaluator as module
from evolve.engine.base import EvaluatorSpec, longest_first
from evolve.engine.inline import InlinePool
from evolve.errors import CandidateError
from evolve.registry import STAGES
from evolve.score.engines.choose import vllm_version
from evolve.stages.kept import LOG
from evolve.stages.pipeline import trained, training_bytes
from evolve.types import Failed, Job, Parent, Recipe, Scored, Training
from evolve.weights.reader import open_model
from tests.score.local_tasks import CHOICE, choice_docs, config, write_task
from tests.space.stub import StubBlock
from tests.tiny import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINES = [
    "hf",
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.slow,
            pytest.mark.vllm,
            pytest.mark.skipif(vllm_version() is None, reason="vllm is not installed"),
        ],
    ),
]


class TrainingStage:
    """Trains nothing, but says so; at rate 9 it fails."""

    block: ClassVar[Any] = StubBlock
    seen: ClassVar[list[str]] = []

    @staticmethod
    def inputs(block: StubBlock) -> tuple[str, ...]:
        return (str(block.model),)

    @staticmethod
    def check(block: StubBlock, models: Any) -> list[tuple[str, str]]:
        return []

    @staticmethod
    def trains(block: StubBlock) -> bool:
        return block.epochs != 0

    @staticmethod
    def outline(block: StubBlock, models: Any) -> Any:
        return models[block.model]

    @staticmethod
    def run(block: StubBlock, models: Any, *, seed: int, memo: Any = None) -> Any:
        TrainingStage.seen.append("train")
        if block.rate == 9:
            raise CandidateError("build", "diverged")
        return replace(models[block.model])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    make_model(tmp_path / "model")
    write_task(tmp_path / "tasks", "choice", choice_docs(20), **CHOICE)
    TrainingStage.seen.clear()
    table = {name: STAGES._table[name] for name in STAGES.names()}
    monkeypatch.setitem(STAGES.__dict__, "_table", {**table, "stub": f"{__name__}:TrainingStage"})
    return tmp_path


def recipe(**block: Any) -> Recipe:
    return Recipe.make({"base": "sha256:0"}, [{"stub": {"model": "base", **block}}] if block else [])


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("short", [False, True])
def test_the_engine_sleeps_while_a_stage_trains(
    home: Path, monkeypatch: pytest.MonkeyPatch, backend: str, short: bool
) -> None:
    settings = config(
        home / "tasks", {"task": "choice", "metric": "acc"}, backend=backend, dtype="float32", max_length=128
    )
    parent = Parent("base", str(home / "model"), str(home / "model"), content="sha256:0")
    pool = InlinePool(EvaluatorSpec(settings, {"base": parent}, "base", "", 1, 0, str(home)), timeout=600)
    monkeypatch.setattr(module, "_is_short", lambda needed, anywhere=False: short)
    with closing(pool):
        run = pool._evaluator.evaluate
        plain = run(Job(recipe()))
        assert isinstance(plain, Scored) and not TrainingStage.seen
        engine: Any = pool._evaluator._engine
        for name in ("sleep", "wake"):
            monkeypatch.setattr(engine, name, spied(engine, name))
        again = run(Job(recipe(rate=0.5)))
        assert TrainingStage.seen[:3] == ["sleep", "train", "wake"]
        assert isinstance(again, Scored) and again.tasks == plain.tasks
        TrainingStage.seen.clear()
        assert isinstance(run(Job(recipe(epochs=0, rate=0.5))), Scored)
        assert "sleep" not in TrainingStage.seen
        failed = run(Job(recipe(rate=9)))
        assert isinstance(failed, Failed) and failed.kind == "build"
        after = run(Job(recipe()))
        assert isinstance(after, Scored) and after.tasks == plain.tasks
        assert pool._evaluator._engine is engine, "nothing was thrown away"


def test_an_outcome_says_what_was_trained_for_it(home: Path) -> None:
    """Whether the engine still holds the candidate or not: a record depends on its recipe alone."""
    log = [{"step": 1.0, "loss": 2.5}]
    report = {"steps": 1, "tokens": 8, "seconds": 0.5, "log": log}
    (home / "model" / LOG).write_text(json.dumps(report))
    task = {"task": "choice", "metric": "acc", "items": 10}
    settings = config(home / "tasks", task, dtype="float32", max_length=128, holdout=5)
    parent = Parent("base", str(home / "model"), str(home / "model"), content="sha256:0")
    pool = InlinePool(EvaluatorSpec(settings, {"base": parent}, "base", "", 1, 0, str(home)), timeout=600)
    expected = (Training("stub", 1, 8, 0.5, ("step", "loss"), ((1.0, 2.5),)),)
    with closing(pool):
        found = [pool._evaluator.evaluate(Job(recipe(rate=0.5), split)) for split in ("search", "holdout")]
        assert TrainingStage.seen == ["train"], "the second time it was held"
        assert [outcome.training for outcome in found if isinstance(outcome, Scored)] == [expected] * 2
        for other in (recipe(), recipe(epochs=0, rate=0.5)):
            outcome = pool._evaluator.evaluate(Job(other))
            assert isinstance(outcome, Scored) and outcome.training == (), "the file is of another model"


def spied(engine: Any, name: str) -> Any:
    real = getattr(engine, name)

    def call(**more: Any) -> None:
        real(**more)
        TrainingStage.seen.append(name)
        if name == "sleep":
            with pytest.raises(CandidateError):
                _ = engine.lm

    return call


@pytest.mark.usefixtures("home")
def test_those_that_train_come_first() -> None:
    jobs = [
        Job(recipe()),
        Job(recipe(rate=1)),
        Job(recipe(epochs=0)),
        Job(recipe(rate=2)),
        Job(Recipe("no JSON")),
    ]
    assert longest_first(jobs) == [jobs[1], jobs[3], jobs[0], jobs[2], jobs[4]]
    assert [trained(job.recipe) for job in jobs] == [0, 1, 0, 1, 0]
    assert trained(recipe(enabled=False)) == 0


def test_training_takes_16_bytes_a_parameter(home: Path) -> None:
    model = open_model(home / "model")
    count = sum(spec.numel for name, spec in model.specs.items() if name not in model.same)
    assert training_bytes(recipe(rate=1), {"base": model}) == 16 * count
    assert training_bytes(recipe(epochs=0), {"base": model}) == 0


@pytest.mark.parametrize(
    ("regularizers", "held"),
    [
        ({}, 0),
        ({"ewc": {"weight": 2.0, "path": "t.txt"}}, 8),
        ({"l2sp": {"weight": 0.1}}, 4),
        ({"lwf": {"weight": 1.0}}, 4),
        ({"lwf": {"weight": 0.0}}, 0),
        ({"ewc": {"weight": 2.0, "path": "t.txt"}, "l2sp": {"weight": 0.1}, "lwf": {"weight": 1.0}}, 16),
    ],
)
def test_what_regularisers_hold_comes_on_top(home: Path, regularizers: dict[str, Any], held: int) -> None:
    model = open_model(home / "model")
    count = sum(spec.numel for name, spec in model.specs.items() if name not in model.same)
    block = {"model": "base", "dataset": {"path": "t.txt"}, "regularizers": regularizers}
    made = Recipe.make({"base": "sha256:0"}, [{"cpt": block}])
    assert training_bytes(made, {"base": model}) == (16 + held) * count
    if set(regularizers) == {"lwf"}:
        adapted = Recipe.make({"base": "sha256:0"}, [{"cpt": {**block, "peft_config": {"r": 2}}}])
        assert training_bytes(adapted, {"base": model}) == 16 * count, "an adapter takes no second network"


def distilled(folder: Path, **changes: Any) -> Recipe:
    (folder / "text.jsonl").write_text('{"text": "the hen and the sea"}\n')
    block = {
        "model": "small",
        "teacher": {"kind": "hf", "model": "big"},
        "dataset": {"path": str(folder / "text.jsonl")},
        "loss_functions": [{"function": "kl"}],
    }
    return Recipe.make({"small": "sha256:0", "big": "sha256:1"}, [{"distill": {**block, **changes}}])


def test_a_teacher_is_counted_once_in_the_type_that_it_is_read_in(home: Path) -> None:
    make_model(home / "big", layers=3, dtype="bfloat16")
    models = {"small": open_model(home / "model"), "big": open_model(home / "big")}
    small, big = (sum(value.numel() for _, value in models[name].tensors()) for name in models)
    assert big > small

    def needed(*, least: bool = False, **changes: Any) -> int:
        return training_bytes(distilled(home, **changes), models, least=least)

    assert needed() == needed(least=True) == 16 * small + 4 * big
    assert needed(loss_functions=[{"function": "cross_entropy"}]) == 16 * small
    some = {"peft_config": {"r": 2}}
    assert needed(**some) == 16 * small + 4 * big and needed(least=True, **some) == 4 * small + 4 * big
    assert needed(least=True, training_args={"optim": "sgd"}) == 8 * small + 4 * big


def test_a_candidate_without_room_fails_before_it_trains(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short by a wide margin it is out of memory; short by a little it may still fit."""
    task = {"task": "choice", "metric": "acc", "items": 10}
    settings = config(home / "tasks", task, dtype="float32", max_length=128, holdout=5)
    parent = Parent("base", str(home / "model"), str(home / "model"), content="sha256:0")
    pool = InlinePool(EvaluatorSpec(settings, {"base": parent}, "base", "", 1, 0, str(home)), timeout=600)
    least = training_bytes(recipe(rate=1), {"base": open_model(home / "model")}, least=True)
    assert least > 0
    with closing(pool):
        for free, good in ((least // 2, False), (least, True)):
            monkeypatch.setattr("evolve.validation.free_memory", lambda swap=False, free=free: free)
            outcome = pool._evaluator.evaluate(Job(recipe(rate=float(good))))
            assert isinstance(outcome, Scored) is good
            assert TrainingStage.seen == (["train"] if good else [])
            if isinstance(outcome, Failed):
                assert outcome.kind == "oom" and "peft_config" in outcome.message


def test_swap_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "MemTotal:  9 kB\nMemAvailable:  5 kB\nSwapTotal: 4 kB\nSwapFree: 3 kB\n"
    monkeypatch.setattr(validation.Path, "read_text", lambda *_, **__: told)
    assert validation.free_memory() == 5 * 1024
    assert validation.free_memory(swap=True) == 8 * 1024
