"""An engine that dies on a candidate: the candidate is tried once more, on a fresh engine."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from evolve.cli.scoring import score_models
from evolve.engine.base import EvaluatorSpec
from evolve.engine.inline import InlinePool
from evolve.registry import ENGINES
from evolve.score.engines.fit import as_candidate_error, died
from evolve.score.scorer import Scorer
from evolve.types import Failed, Job, Parent, Recipe, Scored
from tests.score.local_tasks import CHOICE, KnownModel, choice_docs, config, write_task
from tests.tiny import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evolve.config.schema import ScoreConfig
    from evolve.types import Outcome


class EngineDeadError(Exception):
    """Named as vLLM's own."""


class Engine:
    """An engine that knows all answers. What the first ones raise when they are asked is in ``faults``."""

    opened: int
    faults: list[Exception]
    starts = 1

    def __init__(self, *_: Any) -> None:
        self.fault = dict(enumerate(Engine.faults)).get(Engine.opened)
        self.dead = False
        Engine.opened += 1

    @property
    def lm(self) -> Any:
        if self.fault is not None:
            self.dead = True
            raise self.fault
        return KnownModel()

    def load(self, model: Any) -> None:
        assert not self.dead, "a dead engine takes no model"

    def close(self) -> None:
        raise RuntimeError("a dead engine may not even close")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    make_model(tmp_path / "model")
    write_task(tmp_path / "tasks", "choice", choice_docs(20), **CHOICE)
    monkeypatch.setitem(ENGINES.__dict__, "_table", {"hf": f"{__name__}:Engine"})
    Engine.opened, Engine.faults = 0, []
    return tmp_path


def settings(home: Path) -> ScoreConfig:
    return config(home / "tasks", {"task": "choice", "metric": "acc", "items": 10}, holdout=5)


def parent(home: Path, name: str = "base") -> Parent:
    return Parent(name, str(home / "model"), str(home / "model"), content="sha256:0")


def evaluated(home: Path) -> tuple[Outcome, int]:
    """Return what comes of a candidate, and how often it was tried."""
    spec = EvaluatorSpec(settings(home), {"base": parent(home)}, "base", "", 1, 0, str(home))
    with closing(InlinePool(spec, timeout=600)) as pool:
        job = Job(Recipe.make({"base": "sha256:0"}, []))
        [result] = pool.run([job], lambda: False)
    return result.outcome, result.attempts


@pytest.mark.parametrize(
    "fault",
    [
        EngineDeadError("EngineCore encountered an issue."),
        BrokenPipeError(),
        RuntimeError("Executor failed."),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_candidate_outlives_its_engine(home: Path, fault: Exception) -> None:
    Engine.faults = [fault]
    outcome, attempts = evaluated(home)
    assert isinstance(outcome, Scored) and outcome.value == 1.0
    assert (attempts, Engine.opened) == (2, 2)


def test_it_is_tried_twice_and_not_for_ever(home: Path) -> None:
    Engine.faults = [EngineDeadError("gone")] * 5
    outcome, attempts = evaluated(home)
    assert isinstance(outcome, Failed) and outcome.retryable and "gone" in outcome.message
    assert (attempts, Engine.opened) == (2, 2)


def test_what_is_the_candidates_fault_is_not_tried_again(home: Path) -> None:
    Engine.faults = [RuntimeError("shapes do not fit")]
    outcome, attempts = evaluated(home)
    assert isinstance(outcome, Failed) and not outcome.retryable
    assert attempts == 1


def test_eval_makes_requests_ready_before_it_takes_the_time(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    real = Scorer.score

    def score(self: Scorer, engine: Any, split: Any, items: Any = ()) -> Any:
        calls.append(("score", split))
        return real(self, engine, split, items)

    monkeypatch.setattr(Scorer, "score", score)
    monkeypatch.setattr(Scorer, "rehearse", lambda self, engine, split: calls.append(("ready", split)))
    models = [parent(home, name) for name in ("one", "two")]
    score_models(models, settings(home), ("search", "holdout"), threads=1)
    both = [("score", "search"), ("score", "holdout")]
    assert calls == [("ready", "search"), both[0], ("ready", "holdout"), both[1], *both]


def test_an_engine_that_dies_on_a_load_is_told_apart(home: Path) -> None:
    cause = RuntimeError("reload_weights failed")
    cause.__cause__ = EngineDeadError("gone")
    assert died(cause) and as_candidate_error(cause, "engine").retryable
    assert not as_candidate_error(RuntimeError("no"), "engine").retryable


def test_eval_goes_on_after_an_engine_died_and_after_a_model_failed(home: Path) -> None:
    Engine.faults = [EngineDeadError("gone")]
    models = [parent(home, name) for name in ("one", "two")]
    found = score_models(models, settings(home), ("search", "holdout"), threads=1)
    assert len(found) == 4 and Engine.opened == 2
    assert all(isinstance(outcome, Scored) and outcome.value == 1.0 for outcome in found.values())
    Engine.opened, Engine.faults = 0, [RuntimeError("shapes do not fit")]
    found = score_models(models, settings(home), ("holdout",), threads=1)
    first, second = found["one", "holdout"], found["two", "holdout"]
    assert isinstance(first, Failed) and "shapes do not fit" in first.message
    assert isinstance(second, Scored) and Engine.opened == 2
