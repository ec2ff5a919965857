"""Kept outputs of stages: who shares them, and what is deleted."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from evolve.errors import CandidateError
from evolve.stages.kept import LIMIT, trained
from evolve.weights.locked import locked
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model


@pytest.fixture(autouse=True)
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(LIMIT, "0")
    return tmp_path / "cache" / "evolve" / "stages"


@pytest.fixture
def source(tmp_path: Path) -> Model:
    return open_model(make_model(tmp_path / "source", layers=1))


def keep(key: str, source: Model) -> Model:
    return trained(key, lambda work: (source, {}))


def test_what_somebody_has_is_not_deleted(source: Model, stages: Path) -> None:
    first = keep("a", source)
    second = keep("b", source)
    keep("c", source)
    # Nothing of them was read before the limit was passed.
    for model in (first, second):
        assert all(torch.equal(model.tensor(name), source.tensor(name)) for name in source.specs)
    read = first.tensor
    del first, second, model
    gc.collect()
    keep("d", source)
    assert (stages / "a").is_dir()
    assert not (stages / "b").exists()
    read("model.norm.weight")
    del read
    gc.collect()
    keep("e", source)
    assert [path.name for path in stages.iterdir() if path.is_dir()] == ["e"]


def test_what_another_process_has_is_not_deleted(source: Model, stages: Path) -> None:
    keep("a", source)
    code = "import sys; from evolve.stages.kept import trained; held = trained('a', None); "
    code += "print('has it', flush=True); sys.stdin.read(); held.tensor('model.norm.weight')"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "has it\n"
        keep("b", source)
        assert (stages / "a").is_dir()
        child.communicate("")
    assert child.returncode == 0
    keep("c", source)
    assert not (stages / "a").exists()


def test_unfinished_trainings_are_a_part_of_the_limit(
    source: Model, stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(work: Path) -> tuple[Model, dict[str, str]]:
        (work / "checkpoint-1").mkdir(parents=True)
        (work / "checkpoint-1" / "model").write_bytes(bytes(1 << 20))
        raise OSError("the disk is full")

    for number, key in enumerate(("a", "b", "c")):
        with pytest.raises(OSError, match="full"):
            trained(key, killed)
        os.utime(stages / f"{key}.work", (number, number))
    with locked(stages / "b.lock"):
        # Room for the model and two of the three: the oldest that nobody works on goes.
        size = sum(spec.numel * 4 for spec in source.specs.values())
        monkeypatch.setenv(LIMIT, str((size + 2.5 * (1 << 20)) / (1 << 30)))
        keep("d", source)
        assert sorted(path.name for path in stages.glob("*.work")) == ["b.work", "c.work"]
        monkeypatch.setenv(LIMIT, "0")
        keep("e", source)
        assert [path.name for path in stages.glob("*.work")] == ["b.work"]


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (CandidateError("build", "diverged"), False),
        (ValueError("no such layer"), False),
        (RuntimeError("out of memory"), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_what_cannot_succeed_leaves_nothing(error: BaseException, stays: bool, stages: Path) -> None:
    def fails(work: Path) -> tuple[Model, dict[str, str]]:
        work.mkdir()
        raise error

    with pytest.raises(type(error)):
        trained("a", fails)
    assert (stages / "a.work").exists() is stays
