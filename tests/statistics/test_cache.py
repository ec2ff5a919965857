from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from evolve.errors import CandidateError, UserError
from evolve.statistics.cache import Draft, Source, default_folder, find_or_gather

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

fork = multiprocessing.get_context("fork")

DRAFT = Draft(
    {"a": (2, 3), "scalar": (), "empty": (0, 4), "ü": (5,)},
    {"model.a": Source("a"), "model.b": Source("a", 0), "model.c": Source("ü")},
)


def fill(tensors: Mapping[str, Tensor]) -> None:
    for number, tensor in enumerate(tensors.values(), 1):
        assert not tensor.any()
        tensor.fill_(number)


def gather(folder: Path, work: Any = fill, **key: Any) -> Any:
    return find_or_gather(folder, "fisher", {"model": "m", **key}, lambda: DRAFT, work)


def never(tensors: Mapping[str, Tensor]) -> None:
    raise AssertionError("gathered again")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "fisher").iterdir() if path.suffix != ".lock")


def test_what_is_filled_in_is_found(tmp_path: Path) -> None:
    for found in (gather(tmp_path), gather(tmp_path, never)):
        values, axis = found.get("model.a")
        assert torch.equal(values, torch.ones(2, 3))
        assert axis == 1
        assert found.get("model.b")[1] == 0
        assert torch.equal(found.get("model.c")[0], torch.full((5,), 4.0))
        assert found.get("model.nothing") is None
        assert found.mean == pytest.approx((6 * 1 + 1 * 2 + 5 * 4) / 12)
    with safe_open(found.path, framework="pt") as file:  # by the library itself
        assert set(file.keys()) == {"a", "scalar", "empty", "ü", "mean of all values"}


def test_another_key_is_another_file(tmp_path: Path) -> None:
    paths = {gather(tmp_path, **key).path for key in ({}, {"labels": "data"}, {"corpus": {"seed": 1}})}
    paths.add(find_or_gather(tmp_path, "gram", {"model": "m"}, lambda: DRAFT, fill).path)
    assert len(paths) == 4


def test_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder() == tmp_path / "cache" / "evolve" / "statistics"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "evolve" / "statistics"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CandidateError("non_finite", "no")])
def test_interrupted_gathering_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def broken(tensors: Mapping[str, Tensor]) -> None:
        tensors["a"].fill_(7)
        raise error

    with pytest.raises(type(error)):
        gather(tmp_path, broken)
    assert left(tmp_path) == []
    assert torch.equal(gather(tmp_path).get("model.a")[0], torch.ones(2, 3))


def _killed_while_filling(folder: Path) -> None:
    def deadly(tensors: Mapping[str, Tensor]) -> None:
        tensors["a"].fill_(7)
        os.kill(os.getpid(), signal.SIGKILL)

    gather(folder, deadly)


def test_killed_gathering_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    process = fork.Process(target=_killed_while_filling, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (partial,) = left(tmp_path)
    assert partial.startswith(".")
    assert partial.endswith(".partial")
    found = gather(tmp_path)
    assert torch.equal(found.get("model.a")[0], torch.ones(2, 3))
    assert left(tmp_path) == [found.path.name], "the next one removes what was left"


def _slowly(folder: Path, log: Path) -> None:
    def slow(tensors: Mapping[str, Tensor]) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        fill(tensors)

    found = gather(folder, slow)
    assert torch.equal(found.get("model.a")[0], torch.ones(2, 3))


def test_of_several_processes_one_gathers_and_all_have_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [fork.Process(target=_slowly, args=(tmp_path, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(log.read_text().split()) == 1


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_gathered_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = gather(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-5], "noise": b"\xff" * len(whole), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        found = gather(tmp_path)
    assert "damaged" in caplog.text
    assert found.path.read_bytes() == whole


def test_a_file_without_its_sources_is_gathered_again(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = gather(tmp_path).path
    save_file({"a": torch.ones(2)}, path)
    assert torch.equal(gather(tmp_path).get("model.a")[0], torch.ones(2, 3))


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left.*Free some space.*XDG_CACHE_HOME"):
        gather(tmp_path, never)
    assert left(tmp_path) == []


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Make it writable"):
        gather(tmp_path / "file" / "below")
