from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.weights.content import content_of, file_content
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model

WORDS = (
    "the",
    "hen",
    "then",
    "in",
    "tin",
    "one",
    "red",
    "ants",
    "and",
    "on",
    "rat",
    "sea",
    "tie",
    "net",
    "end",
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    draw = random.Random(0)
    path = tmp_path / "domain.jsonl"
    path.write_text(
        "".join(json.dumps({"text": " ".join(draw.choices(WORDS, k=12))}) + "\n" for _ in range(150))
    )
    return path


@pytest.fixture
def base(tmp_path: Path) -> Model:
    from dataclasses import replace

    folder = make_model(tmp_path / "base")
    return replace(open_model(folder), content=content_of(folder))


def block(text: Path, **changes: Any) -> CptBlock:
    file = {"path": str(text), "content": file_content(text)}
    whole = {
        "model": "base",
        "dataset": {**file, "max_length": 48},
        "training_args": {"learning_rate": 3e-3, "per_device_train_batch_size": 4},
    }
    for name, value in changes.pop("regularizers", {}).items():
        whole.setdefault("regularizers", {})[name] = {**(file if name == "ewc" else {}), **value}
    return CptBlock.model_validate({**whole, **changes})


def run(cpt: CptBlock, base: Model, seed: int = 0) -> dict[str, torch.Tensor]:
    found = CptStage.run(cpt, {"base": base}, seed=seed)
    return {name: found.tensor(name).clone() for name in found.specs}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def history(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(cache.rglob("training.json"))]


def forget(cache: Path) -> None:
    import shutil

    shutil.rmtree(cache / "cache" / "evolve" / "stages")


def test_the_loss_falls_and_a_sweep_trains_once(tmp_path: Path, text: Path, base: Model) -> None:
    whole = run(block(text), base)
    (seen,) = history(tmp_path)
    losses = [line["loss"] for line in seen["log"]]
    assert losses[-1] < 0.8 * losses[0]
    assert seen["data"]["data_documents"] == 150
    start = {name: base.tensor(name) for name in base.specs}
    half = run(block(text, wise_ft={"alpha": 0.5}), base)
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, 0.5 * start[name] + 0.5 * whole[name], rtol=1e-5, atol=1e-6)
    assert same(run(block(text, wise_ft={"alpha": 0.0}), base), start)
    assert len(history(tmp_path)) == 1
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_same_seed_same_bits(tmp_path: Path, text: Path, base: Model) -> None:
    first = run(block(text), base)
    forget(tmp_path)
    assert same(first, run(block(text), base))
    assert not same(first, run(block(text), base, seed=1))
    assert not same(first, run(block(text, seed=2), base))


def test_everything_at_once(tmp_path: Path, text: Path, base: Model) -> None:
    cpt = block(
        text,
        replay={"self_generated": 20, "share": 0.3},
        curriculum={"order": "base_loss", "pacing": 0.2},
        phases=[
            {"until": 0.4, "train": "embeddings"},
            {"until": 1.0, "learning_rate_scale": {"embed_tokens": 0.0}, "replay_share_scale": 0.5},
        ],
        regularizers={"ewc": {"weight": 1.0, "samples": 20}, "l2sp": {"weight": 0.1}, "lwf": {"weight": 0.5}},
    )
    assert cpt.problems() == []
    found = run(cpt, base)
    (seen,) = history(tmp_path)
    assert {"cross_entropy", "ewc", "l2sp", "lwf"} <= seen["log"][-1].keys()
    assert seen["log"][-1]["lwf"] > 0
    counts = seen["data"]
    assert counts["replay_bytes"] / (counts["replay_bytes"] + counts["data_bytes"]) == pytest.approx(
        0.21, abs=0.01
    )
    moved = {name for name, tensor in found.items() if not torch.equal(tensor, base.tensor(name))}
    assert "model.embed_tokens.weight" in moved
    assert len(moved) == len(found)


def test_a_strong_regulariser_holds_the_start(tmp_path: Path, text: Path, base: Model) -> None:
    def moved(**weights: dict[str, Any]) -> float:
        found = run(block(text, regularizers=weights), base)
        return sum(float(((found[name] - base.tensor(name)) ** 2).sum()) for name in found)

    free = moved()
    assert moved(l2sp={"weight": 10.0}) < 0.3 * free
    assert moved(ewc={"weight": 1000.0, "samples": 40}) < free


def test_an_adapter(tmp_path: Path, text: Path, base: Model) -> None:
    found = run(block(text, peft_config={"r": 4}), base)
    still = {name for name, tensor in found.items() if torch.equal(tensor, base.tensor(name))}
    assert still == {name for name in found if "norm" in name or "embed" in name}
    cpt = block(text, peft_config={"r": 4}, regularizers={"l2sp": {"weight": 1.0}})
    assert ("regularizers", "l2sp") in [path for path, _ in cpt.problems()]


def test_a_computed_start(text: Path, base: Model) -> None:
    from dataclasses import replace

    computed = replace(base, content="", tensor=lambda name: base.tensor(name) * 1.0)
    other = replace(base, content="", tensor=lambda name: base.tensor(name) * 1.01)
    assert same(run(block(text), computed), run(block(text), base))
    contents = {
        CptStage.run(block(text, wise_ft={"alpha": a}), {"base": base}, seed=0).content for a in (0.5, 1.0)
    }
    assert len(contents) == 2
    assert all(content.startswith("stage:") for content in contents)
    assert not same(run(block(text), other), run(block(text), base))


def test_check(tmp_path: Path, text: Path, base: Model) -> None:
    assert CptStage.check(block(text), {"base": base}) == []
    cpt = block(text, dataset={"path": str(tmp_path / "gone"), "max_length": 999})
    places = dict(CptStage.check(cpt, {"base": base}))
    assert places.keys() == {"dataset.path", "dataset.max_length"}
    assert "256" in places["dataset.max_length"]
    shape = CptStage.outline(block(text), {"base": base})
    assert shape.architecture == base.architecture
    assert CptStage.trains(block(text))
    assert not CptStage.trains(block(text, wise_ft={"alpha": 0.0}))


def test_a_misspelt_pattern_of_a_learning_rate_is_a_problem(text: Path, base: Model) -> None:
    def check(**scale: float) -> list[str]:
        cpt = block(text, phases=[{"until": 1.0, "learning_rate_scale": scale}])
        return [path for path, _ in CptStage.check(cpt, {"base": base})]

    assert check(embed_tokens=0.5) == []
    assert check(**{"layers.1": 0.5, "*norm*": 2.0}) == []
    assert check(**{"layers.7": 0.5}) == check(embed_token=0.5) == ["phases.0.learning_rate_scale"]


@pytest.mark.parametrize("temperature", [0.0, {"low": -1.0, "high": 2.0}])
def test_a_temperature_of_zero_is_a_problem(text: Path, temperature: Any) -> None:
    found = block(text, regularizers={"lwf": {"weight": 1.0, "temperature": temperature}}).problems()
    assert [path for path, _ in found] == [("regularizers", "lwf", "temperature")]


def test_no_rest_without_new_rows(text: Path, base: Model) -> None:
    cpt = block(text, phases=[{"until": 0.5, "train": "new_embeddings"}, {"until": 1.0}])
    with pytest.raises(CandidateError, match="a stage vocab has added, and the start has none"):
        run(cpt, base)


CHILD = """
import sys
from dataclasses import replace
import evolve.training.trainer as trainer
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
original = trainer.Settings.__init__
trainer.Settings.__init__ = lambda self, *a, **k: original(self, *a, **{**k, "save_seconds": 0.0})
base = replace(open_model(sys.argv[1]), content=content_of(sys.argv[1]))
CptStage.run(CptBlock.model_validate_json(sys.argv[2]), {"base": base}, seed=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_killed_and_resumed_gives_the_same_bits(
    tmp_path: Path, text: Path, base: Model, attempt: int
) -> None:
    cpt = block(
        text,
        replay={"path": str(text), "content": file_content(text), "share": 0.2},
        regularizers={"ewc": {"weight": 1.0, "samples": 20}},
    )
    whole = run(cpt, base)
    forget(tmp_path)
    arguments = [sys.executable, "-c", CHILD, str(tmp_path / "base"), cpt.model_dump_json(exclude_none=True)]
    child = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    folder = tmp_path / "cache" / "evolve" / "stages"
    until = time.monotonic() + 120
    while not list(folder.rglob("complete")) and time.monotonic() < until and child.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(attempt).random() * 0.3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = list(folder.rglob("complete"))
    assert before or list(folder.rglob("training.json"))
    print("killed with", [path.parent.name for path in before])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = run(cpt, base)
    finally:
        torch.set_num_threads(threads)
    assert same(whole, again)


@pytest.mark.slow
def test_ewc_holds_the_more_the_larger_its_weight(tmp_path: Path, text: Path, base: Model) -> None:
    """Over its useful range the distance from the start falls, and at the end it is near it."""

    def moved(weight: float) -> float:
        regularizers = {"ewc": {"weight": weight, "samples": 40}} if weight else {}
        found = run(block(text, regularizers=regularizers), base)
        return sum(float(((found[name] - base.tensor(name)) ** 2).sum()) for name in found)

    distances = [moved(weight) for weight in (0.0, 1.0, 100.0, 1e4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.1 * distances[0]
