"""A training in several processes, beside the same one in a single process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError, UserError
from evolve.stages import together
from evolve.stages.pipeline import build
from evolve.types import Recipe
from evolve.weights.content import content_of, file_content
from evolve.weights.reader import open_model
from tests.small import WORDS
from tests.stages.distill.kit import shown
from tests.tiny import make_model

if TYPE_CHECKING:
    from evolve.weights.model import Model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    make_model(folder / "student", seed=1, layers=1)
    make_model(folder / "teacher", seed=2, layers=2)
    draw = random.Random(0)
    with (folder / "data.jsonl").open("w") as file:
        for _ in range(23):
            file.write(json.dumps({"text": " ".join(draw.choices(WORDS, k=12))}) + "\n")
    return folder


def recipe(home: Path, *stages: dict[str, Any]) -> Recipe:
    names = sorted({"student", *(["teacher"] if any("distill" in stage for stage in stages) else [])})
    return Recipe.make({name: content_of(str(home / name)) for name in names}, list(stages))


def data(home: Path) -> dict[str, Any]:
    path = home / "data.jsonl"
    return {"path": str(path), "content": file_content(path), "max_length": 24, "packing": False}


def adapted(home: Path, **changes: Any) -> dict[str, Any]:
    """Three rows a step in two parts: one process has two of them, the last step has two rows."""
    return {
        "cpt": {
            "model": "student",
            "dataset": data(home),
            "training_args": {
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                **changes.pop("training_args", {}),
            },
            **changes,
        }
    }


def taught(home: Path, **changes: Any) -> dict[str, Any]:
    return {
        "distill": {
            "teacher": {"kind": "hf", "model": "teacher"},
            "dataset": data(home),
            "loss_functions": [{"function": "kl"}, {"function": "cross_entropy"}],
            "training_args": {"learning_rate": 1e-2, "per_device_train_batch_size": 3},
            **changes,
        }
    }


def trained(asked: Recipe, home: Path, cache: Path, processes: int, patch: pytest.MonkeyPatch) -> Model:
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv(together.PROCESSES, str(processes))
    paths = {name: str(home / name) for name in asked.models}
    together.train_together(asked, paths, seed=3)
    if processes > 1:  # what was not trained together would be trained here, and hide it
        patch.setattr("evolve.training.loop.make_trainer", None)
    found = build(asked, {name: open_model(path) for name, path in paths.items()}, seed=3)
    patch.undo()
    return found


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [{"until": 0.5, "train": "embeddings"}, {"until": 1.0, "train": "all"}]
    asked = recipe(home, adapted(home, phases=phases, regularizers={"l2sp": {"weight": 0.1}}), taught(home))
    alone = trained(asked, home, tmp_path / "one", 1, monkeypatch)
    both = trained(asked, home, tmp_path / "two", 2, monkeypatch)
    start = open_model(str(home / "student"))
    for name, tensor in alone.tensors():
        moved = float((tensor - start.tensor(name)).abs().max())
        assert float((both.tensor(name) - tensor).abs().max()) < 1e-3 * moved
    ours, theirs = shown(both), shown(alone)
    assert ours["steps"] == theirs["steps"] == 8
    assert ours["tokens"] == theirs["tokens"]
    for mine, other in zip(ours["log"], theirs["log"], strict=True):
        assert mine == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_a_failure_of_one_is_the_failure(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(home, adapted(home, training_args={"learning_rate": 1e30, "max_grad_norm": 0.0}))
    with pytest.raises(CandidateError, match="the loss is") as caught:
        trained(asked, home, tmp_path / "cache", 2, monkeypatch)
    assert caught.value.kind == "non_finite"
    assert not list((tmp_path / "cache").rglob("*.work"))


_DRIVER = """
import sys
from evolve.stages.together import train_together
from evolve.types import Recipe
train_together(Recipe(open(sys.argv[1]).read()), {"student": sys.argv[2]}, seed=3)
"""


@pytest.mark.slow
def test_a_kill_leaves_nobody_behind_and_the_same_call_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(home, adapted(home, training_args={"num_train_epochs": 400}))
    (tmp_path / "recipe.json").write_text(asked.text)
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        together.PROCESSES: "2",
        "EVOLVE_TEST_MARK": tmp_path.name,
    }
    command = [sys.executable, "-c", _DRIVER, str(tmp_path / "recipe.json"), str(home / "student")]
    with subprocess.Popen(command, env=environment) as driver:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "cache").rglob("*.work")) and time.monotonic() < deadline:
            time.sleep(0.2)
        driver.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (left := marked(tmp_path.name)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []
    whole = recipe(home, adapted(home, training_args={"num_train_epochs": 400}))
    assert trained(whole, home, tmp_path / "cache", 2, monkeypatch).content.startswith("stage:")


def marked(name: str) -> list[int]:
    """Return the processes with a mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if f"EVOLVE_TEST_MARK={name}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def test_one_process_is_the_caller(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_run", lambda command: pytest.fail("a process was started"))
    monkeypatch.setenv(together.PROCESSES, "2")
    merge = {"merge": {"merge_method": "passthrough", "models": [{"model": "student"}]}}
    together.train_together(recipe(home, merge), {"student": str(home / "student")})
    served = taught(home, teacher={"kind": "vllm", "model": "teacher"})
    together.train_together(recipe(home, served), {})
    monkeypatch.setenv(together.PROCESSES, "1")
    together.train_together(recipe(home, adapted(home)), {})


def test_as_many_processes_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(together.PROCESSES, raising=False)
    for gpus, expected in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert together.processes() == expected
    for wrong in ("0", "two", "-1", "", "²"):
        monkeypatch.setenv(together.PROCESSES, wrong)
        with pytest.raises(UserError, match="whole number of at least 1"):
            together.processes()
