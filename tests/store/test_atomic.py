from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from evolve.errors import RunError
from evolve.store.atomic import is_temporary, make_folder, sweep, write_bytes, write_text

if TYPE_CHECKING:
    from pathlib import Path


def writer(path: Path, sizes: tuple[int, ...]) -> None:
    while True:
        for size in sizes:
            write_bytes(path, bytes([size % 251]) * size)


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "datei mit ü.json"
    sizes = (1, 70_000, 1_000_000)
    write_bytes(path, b"\x01")
    instants = random.Random(0)
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=writer, args=(path, sizes))
        process.start()
        time.sleep(instants.uniform(0.0, 0.03))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        data = path.read_bytes()
        assert len(data) in sizes
        assert data == bytes([len(data) % 251]) * len(data)
    assert all(is_temporary(file.name) for file in tmp_path.iterdir() if file != path)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_sweep_leaves_the_living_and_what_is_not_ours(tmp_path: Path) -> None:
    ours = tmp_path / f".x.json.{os.getpid()}.0123abcd.tmp"
    dead = tmp_path / ".x.json.2147483600.0123abcd.tmp"
    others = [tmp_path / name for name in ("x.tmp", ".x.tmp", ".x.json.12.0123ABCD.tmp", "notes")]
    for file in (ours, dead, *others):
        file.touch()
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([ours, *others])
    sweep(tmp_path / "absent")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "mend"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "read-only.*--runs"), (errno.EIO, "Mend that")],
)
def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, mend: str
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(RunError, match=mend) as caught:
        write_text(path, "new")
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no half-written file stays"


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/run: cannot be written"):
        make_folder(tmp_path / "file" / "run")


def test_text_that_is_no_text(tmp_path: Path) -> None:
    write_text(tmp_path / "log", "before \udcff after ü")
    assert (tmp_path / "log").read_text() == "before \\udcff after ü"
