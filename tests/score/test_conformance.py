"""Every answer to every request equals plain lm-eval's, on both engines, over all kinds of tasks."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from evolve.registry import ENGINES
from evolve.score.engines.choose import vllm_version
from evolve.score.engines.tokens import Memo
from evolve.score.items import item_key
from evolve.score.scorer import Scorer
from evolve.weights.reader import open_model
from tests.score.local_tasks import config
from tests.score.task_kinds import CHAT, KINDS, write_kinds
from tests.tiny import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evolve.score.engines.base import Engine

VLLM = pytest.param(
    "vllm",
    marks=[pytest.mark.vllm, pytest.mark.skipif(vllm_version() is None, reason="vllm is not installed")],
)
CHATTING: dict[str, Any] = {"apply_chat_template": True, "system_instruction": "Be brief."}
CHAT_KINDS = {name: KINDS[name] for name in ("choice", "shots", "generate", "stops")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    home = tmp_path_factory.mktemp("conformance")
    make_model(home / "model")
    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(home / "model")
    write_kinds(home / "tasks")
    return home


@pytest.fixture(scope="module", params=["hf", VLLM])
def engine(home: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    settings = config(home / "tasks", {"task": "choice", "metric": "acc"}, dtype="float32", batch_size=4)
    with closing(ENGINES.load(request.param)(settings, open_model(home / "model"), 1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(home: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(home / "model"), batch_size=3, device="cpu", dtype="float32")


def plain_like(lm: Any) -> Any:
    """Return lm-eval's own class around what our LM holds; its backends cut windows differently."""
    [kind] = [base for base in type(lm).__bases__ if base.__module__.startswith("lm_eval")]
    found = kind.__new__(kind)
    vars(found).update(vars(lm))
    return found


def ours(engine: Engine, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Any]:
    """Return request to answer, and the scores."""
    answers: dict[str, Any] = {}

    def spy(name: str) -> Any:
        real = getattr(engine.lm, name)

        def call(requests: Any, **more: Any) -> Any:
            keys = [key_of(request.args) for request in requests]
            found = real(requests, **more)
            answers.update(zip(keys, found, strict=True))
            return found

        return call

    with monkeypatch.context() as patch:
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            patch.setattr(engine.lm, name, spy(name))
        return answers, scorer.score(engine, "search")


def theirs(lm: Any, home: Path, names: list[str], **more: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    return simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, **more)


def key_of(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True)


def compare(answers: dict[str, Any], scores: Any, results: Any, kinds: dict[str, str]) -> None:
    expected = {
        key_of(arguments): answer[0]
        for name in kinds
        for sample in results["samples"][name]
        for arguments, answer in zip(sample["arguments"], sample["resps"], strict=True)
    }
    assert answers.keys() == expected.keys()
    for key, answer in expected.items():
        if isinstance(answer, str):
            assert answers[key] == answer, key
        elif isinstance(answer, tuple):
            assert answers[key][0] == pytest.approx(answer[0], abs=1e-4), key
            assert bool(answers[key][1]) == bool(answer[1]), key
        else:
            assert answers[key] == pytest.approx(answer, rel=1e-5), key
    for name, metric in kinds.items() if scores else ():
        metric = metric.partition(",")[0]
        samples = {item_key(sample["doc"]): sample[metric] for sample in results["samples"][name]}
        assert scores[name].items.keys() == samples.keys()
        if metric in ("acc", "acc_norm", "acc_mutual_info", "exact_match"):
            assert scores[name].items == samples
        [value] = [v for k, v in results["results"][name].items() if k.partition(",")[0] == metric]
        assert scores[name].value == pytest.approx(value, rel=1e-5)


def scorer_of(home: Path, kinds: dict[str, str], **changes: Any) -> Scorer:
    blocks = [{"task": name, "metric": metric} for name, metric in kinds.items()]
    return Scorer(config(home / "tasks", *blocks, **changes))


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home / "tasks")  # where lm-eval looks for data files


@pytest.mark.usefixtures("at_home")
def test_every_kind_of_task(home: Path, engine: Engine, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(home, KINDS)
    answers, scores = ours(engine, scorer, monkeypatch)
    oracle = plain_like(engine.lm)
    compare(answers, scores, theirs(oracle, home, list(KINDS)), KINDS)
    if "VLLM" in type(oracle).__name__:
        # The other backend is a witness of its own, but for windows of another length.
        short = {name: metric for name, metric in KINDS.items() if name != "rolling"}
        answers, scores = ours(engine, scorer_of(home, short), monkeypatch)
        compare(answers, scores, theirs(plain, home, list(short)), short)
    again, _ = ours(engine, scorer, monkeypatch)
    assert {key: again[key] for key in answers} == answers, "the second call gives the same numbers"


@pytest.mark.usefixtures("at_home")
def test_chat_template_and_system_prompt(
    home: Path, engine: Engine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of(home, CHAT_KINDS, **CHATTING)
    answers, scores = ours(engine, scorer, monkeypatch)
    assert all("<system>Be brief." in key for key in answers)
    compare(answers, scores, theirs(plain, home, list(CHAT_KINDS), **CHATTING), CHAT_KINDS)


@pytest.mark.usefixtures("at_home")
def test_the_members_of_a_group(
    home: Path, engine: Engine, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {name: KINDS[name] for name in ("choice", "generate")}
    answers, scores = ours(engine, scorer_of(home, members), monkeypatch)
    compare(answers, scores, theirs(plain, home, ["both"]), members)


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("name", ["sized", "alike"])
def test_a_group_as_a_task(
    home: Path, engine: Engine, plain: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answers, scores = ours(engine, scorer_of(home, {name: "acc"}), monkeypatch)
    results = theirs(plain, home, [name])
    group = scores.pop(name)
    assert not scores and group.value == pytest.approx(results["groups"][name]["acc,none"], abs=1e-9)
    members = ("choice", "shots", "long")
    samples = {
        f"{task}/{item_key(sample['doc'])}": sample["acc"]
        for task in members
        for sample in results["samples"][task]
    }
    assert group.items.keys() == samples.keys()
    assert name == "alike" or group.items == samples
    compare(answers, {}, results, dict.fromkeys(members, ""))


@pytest.mark.usefixtures("at_home")
def test_tokens_are_made_once(home: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(home, KINDS)
    scorer.score(engine, "search")
    tokenizer = type(engine.lm.tokenizer)

    def refusing(real: Any) -> Any:
        def encode(self: Any, text: Any, *more: Any, **options: Any) -> Any:
            # lm-eval encodes stop sequences for each batch.
            assert isinstance(text, str) and len(text) <= len("</s>"), "turned into tokens once more"
            return real(self, text, *more, **options)

        return encode

    for name in ("__call__", "encode"):
        monkeypatch.setattr(tokenizer, name, refusing(getattr(tokenizer, name)))
    scorer.score(engine, "search")


@pytest.mark.usefixtures("at_home")
def test_after_a_rehearsal_only_passes_are_left(
    home: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed before, nothing is made afterwards, and the scores are the same."""
    kinds = {name: KINDS[name] for name in ("choice", "generate", "rolling")}
    wanted = scorer_of(home, kinds).score(engine, "search")
    lm = engine.lm
    monkeypatch.setattr(lm, "memo", Memo("fresh"))

    passes: list[Any] = []

    def refuse(*given: Any, **_: Any) -> Any:
        passes.append(given)
        raise AssertionError("a pass")

    scorer = scorer_of(home, kinds)
    name = "_run" if hasattr(lm, "_run") else "answers"
    with monkeypatch.context() as patch:
        patch.setattr(lm, name, refuse)
        if name == "answers":
            patch.setattr(lm.model, "generate", refuse)
        scorer.rehearse(engine, "search")
    made = lm.memo._found.keys(), lm.memo.plans.keys()
    before = [set(keys) for keys in made]
    assert not passes and all(before) and not lm.rehearses
    assert scorer.score(engine, "search") == wanted
    assert [set(keys) for keys in made] == before
