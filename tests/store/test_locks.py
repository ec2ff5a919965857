from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import RunError
from evolve.store.locks import hold, holder

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.store.rundir import RunDir

FORK = multiprocessing.get_context("fork")


def keep(path: Path, held: Any, seconds: float) -> None:
    with hold(path, "evolve run ü.yaml"):
        held.set()
        time.sleep(seconds)


def start(path: Path, seconds: float = 60.0) -> Any:
    held = FORK.Event()
    process = FORK.Process(target=keep, args=(path, held, seconds))
    process.start()
    assert held.wait(20)
    return process


def test_the_error_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = start(path)
    try:
        with pytest.raises(RunError) as caught, hold(path, "second"):
            pytest.fail("two hold it")
        for part in (str(path), f"pid {process.pid}", socket.gethostname(), "evolve run ü.yaml", "since 20"):
            assert part in str(caught.value)
    finally:
        process.kill()
        process.join()


def test_a_killed_holder_frees_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = start(path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert holder(path)["pid"] == process.pid, "the name stays, the lock does not"
    began = time.monotonic()
    with hold(path, "next"):
        assert holder(path)["pid"] == os.getpid()
        assert holder(path)["command"] == "next"
    assert time.monotonic() - began < 1
    assert path.read_text() == ""


def test_waiting(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = start(path, 0.5)
    began = time.monotonic()
    with pytest.raises(RunError), hold(path, "too short", wait=0.1):
        pass
    with hold(path, "long enough", wait=20):
        assert time.monotonic() - began < 15
    process.join()


def test_twice_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, "first"):
        with pytest.raises(RunError, match=f"pid {os.getpid()}"), hold(path, "second"):
            pass
        assert holder(path)["command"] == "first"
    with hold(path, "third"):
        pass


def grandparent(path: Path, pid_file: Path) -> None:
    with hold(path, "parent"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        pid_file.write_text(str(child))
        time.sleep(60)


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """A data loader's worker may outlive a killed driver."""
    path, pid_file = tmp_path / "lock", tmp_path / "pid"
    process = FORK.Process(target=grandparent, args=(path, pid_file))
    process.start()
    try:
        deadline = time.monotonic() + 20
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        child = int(pid_file.read_text())
        with pytest.raises(RunError), hold(path, "while it lives"):
            pass
        process.kill()
        process.join()
        os.kill(child, 0)
        with hold(path, "after its death", wait=2):
            pass
    finally:
        process.kill()
        process.join()
        os.kill(child, signal.SIGKILL)


def fork_inside(path: Path, other: Path) -> None:
    opened = []
    with hold(path, "parent"):
        child = os.fork()
        if child == 0:
            # The numbers of the lock's files are free here: one of these gets them.
            for _ in range(8):
                opened.append(os.open(other, os.O_RDWR | os.O_CREAT))
            os.write(opened[0], b"precious")
        else:
            _, status = os.waitpid(child, 0)
            assert status == 0
            assert holder(path)["command"] == "parent"
            with pytest.raises(RunError), hold(path, "second"):
                pass
    if child == 0:
        os._exit(0 if all(os.fstat(number).st_size == 8 for number in opened) else 1)


def test_a_child_that_leaves_the_block_spoils_nothing(tmp_path: Path) -> None:
    process = FORK.Process(target=fork_inside, args=(tmp_path / "lock", tmp_path / "other"))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_lock_without_a_readable_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, "first"):
        path.write_text("{torn")
        with pytest.raises(RunError, match="another process"), hold(path, "second"):
            pass


def test_two_drivers_on_one_run(run: RunDir) -> None:
    same = pickle.loads(pickle.dumps(run))
    with run.lock("evolve run a.yaml"), run.island_lock(0.0):
        with pytest.raises(RunError, match=r"evolve run a\.yaml"), same.lock("evolve run b.yaml"):
            pass
        with pytest.raises(RunError, match="island"), same.island_lock(0.2):
            pass
        assert json.loads((run.path / "lock").read_text())["command"] == "evolve run a.yaml"
    with same.lock("evolve run b.yaml"), same.island_lock(0.0):
        pass
