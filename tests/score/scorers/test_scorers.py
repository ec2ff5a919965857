"""Size, latency, the user's function, and what all scorers share."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from evolve.errors import CandidateError
from evolve.registry import SCORERS
from evolve.score.choice import halves
from evolve.score.objective import objective
from evolve.score.scorer import Scorer
from evolve.score.scorers.base import ScorerProblem, exact, located_scorers
from evolve.score.scorers.python import load_function
from evolve.score.statistics import compare, interval
from tests.score.scorers.held import config, score

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.score.engines.base import Engine

CODE = """
def score(model):
    tensor = model.tensor("model.norm.weight")
    return {
        "width": tensor.shape[0],
        "each": {"a": 1.0, "b": 2.0},
        "split": {"search": 1.0, "holdout": 2.0}[model.split],
        "answered": model.lm.text_likelihoods(["the hen"])[0],
        "bad": float("nan"),
        "word": "seven",
        "none": {},
    }

def empty(model):
    return None
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "scores.py"
    path.write_text(CODE)
    return path


def test_size_is_what_the_files_hold(engine: Engine, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors").values()
    found = score(engine, {"size": {}}, {"size": {"name": "disk", "measure": "bytes"}})
    assert found["size"].value == pytest.approx(sum(tensor.numel() for tensor in tensors) / 1e9)
    assert found["disk"].value == pytest.approx(sum(tensor.nbytes for tensor in tensors) / 1e9)
    assert (found["size"].metric, found["disk"].metric) == ("billion_parameters", "gigabytes")
    assert found["size"].stderr == 0 and not found["size"].higher_is_better


def test_an_exact_number_has_no_error_also_in_its_halves() -> None:
    settings = config({"size": {}})
    one, other = ({"size": exact("x", value, higher_is_better=False)} for value in (0.5, 0.7))
    found = interval(one, settings)
    assert found.low == found.high == -0.5
    gap = compare(one, other, settings)
    assert gap.low == pytest.approx(0.2) and gap.high == pytest.approx(0.2) and gap.verdict == "better"
    for half in halves(one["size"]):
        assert half.value == 0.5 and half.stderr == 0


def test_latency_counts_its_repetitions(engine: Engine) -> None:
    asked: list[tuple[int, int]] = []
    real = engine.lm.write_tokens
    engine.lm.write_tokens = lambda tokens, count: asked.append((len(tokens), count)) or real(tokens, count)
    found = score(engine, {"latency": {"prompt_tokens": 9, "new_tokens": 3, "repeats": 5}})["latency"]
    del engine.lm.write_tokens
    assert asked == [(9, 3)] * 6, "the first does not count"
    assert len(found.items) == 5 and all(value > 0 for value in found.items.values())
    assert found.metric == "seconds" and not found.higher_is_better


def test_a_function_of_the_user(engine: Engine, file: Path) -> None:
    def block(metric: str, **more: Any) -> dict[str, Any]:
        return {"python": {"function": f"{file}:score", "metric": metric, "name": metric, **more}}

    found = score(engine, block("width"), block("each", higher_is_better=False), block("answered"))
    assert found["width"].value == 64 and found["width"].higher_is_better
    assert found["each"].items == {"a": 1.0, "b": 2.0} and found["each"].value == 1.5
    assert found["each"].stderr == pytest.approx(0.5) and not found["each"].higher_is_better
    assert math.isnan(found["width"].stderr), "one number says nothing of its error"
    assert found["answered"].value < 0
    for split, value in (("search", 1.0), ("holdout", 2.0)):
        assert score(engine, block("split"), split=split, holdout=1)["split"].value == value
    for metric, kind in (("bad", "non_finite"), ("word", "score"), ("none", "score"), ("absent", "score")):
        with pytest.raises(CandidateError) as caught:
            score(engine, block(metric))
        assert caught.value.kind == kind
    with pytest.raises(CandidateError, match="NoneType"):
        score(engine, {"python": {"function": f"{file}:empty", "metric": "x"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores.py", "expected file.py:name"),
        ("scores:score", "expected file.py:name"),
        ("no.py:score", "cannot be read"),
        ("scores.py:socre", "has no function 'socre'; it has score, empty"),
        ("broken.py:score", "cannot be imported: SyntaxError"),
    ],
)
def test_a_function_that_is_not_there(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "broken.py").write_text("def score(:")
    with pytest.raises(ScorerProblem, match=message):
        load_function(text)


def test_scorers_and_weights_make_the_objective(engine: Engine, file: Path) -> None:
    settings = config(
        {"size": {"weight": 1.0}},
        {"python": {"function": f"{file}:score", "metric": "each", "weight": 3.0}},
        {"latency": {"weight": 0.0}},
    )
    found = Scorer(settings).score(engine, "search")
    value, stderr = objective(found, settings)
    assert value == pytest.approx((3 * 1.5 - found["size"].value) / 4)
    assert stderr == pytest.approx(3 / 4 * 0.5)


@pytest.mark.parametrize("kind", SCORERS.names())
def test_every_scorer_keeps_the_contract(
    kind: str, engine: Engine, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.parent / "cache"))
    prompts = (json.dumps({"text": f"the hen and rat {number}"}) + "\n" for number in range(12))
    (file.parent / "prompts.jsonl").write_text("".join(prompts))
    (file.parent / "text.txt").write_text("".join(f"line {number}\n" for number in range(40)))
    blocks = {
        "bits_per_byte": {"path": "text.txt", "chunk_bytes": 30},
        "python": {"function": "scores.py:score", "metric": "each"},
        "kl_to_teacher": {"model": str(folder), "path": "text.txt", "chunk_bytes": 30},
        "speculative": {"target": str(folder), "prompts": "prompts.jsonl", "max_new_tokens": 4},
    }
    monkeypatch.chdir(file.parent)
    settings = config({kind: blocks.get(kind, {})}, holdout=4)
    scorer = Scorer(settings)
    assert scorer.fingerprint == Scorer(settings).fingerprint
    assert scorer.fingerprint != Scorer(config({kind: {**blocks.get(kind, {}), "name": "x"}})).fingerprint
    assert set(scorer.sizes) == {kind} and set(scorer.sizes[kind]) == {"search", "holdout"}
    # Workers start in another folder.
    moved = settings.model_copy(update={"scorers": located_scorers(settings)})
    monkeypatch.chdir("/")
    assert Scorer(moved).fingerprint == scorer.fingerprint
    for split in ("search", "holdout"):
        [(name, found)] = scorer.score(engine, split).items()
        [counted] = settings.counted
        assert (name, found.metric) == (counted.task, counted.metric)
        assert found.items and sum(found.items.values()) / len(found.items) == pytest.approx(found.value)
