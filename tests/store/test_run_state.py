"""A run's state, its stop file and the leftovers of killed writers."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

from evolve.store.rundir import RunDir

if TYPE_CHECKING:
    import pytest

FORK = multiprocessing.get_context("fork")


def test_the_lock_sweeps_what_killed_writers_left(run: RunDir) -> None:
    folders = [run.path, run.path / "study", run.path / "logs", run.path / "candidates" / "key"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".x.json.2147483600.0123abcd.tmp").write_text("{")
    assert run.records() == []
    with run.lock("x"):
        assert not list(run.path.rglob("*.tmp"))


def test_state(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    assert run.state() == {}
    run.write_state(phase="search", failed={"oom": 1})
    run.write_state(phase="export", reason="größe")
    state = run.state()
    assert {key: state[key] for key in ("phase", "failed", "reason")} == {
        "phase": "export",
        "failed": {"oom": 1},
        "reason": "größe",
    }
    first = state["updated"]
    run.write_state()
    assert run.state()["updated"] >= first
    (run.path / "state.json").write_text('{"phase": ')
    assert run.state() == {}
    assert "state.json" in caplog.text
    run.write_state(phase="search")
    assert run.state()["phase"] == "search"


def count(run: RunDir, name: str) -> None:
    for number in range(1, 41):
        run.write_state(**{name: number})


def test_two_processes_write_the_state(run: RunDir) -> None:
    """Driver and island do: neither may undo what the other wrote."""
    processes = [FORK.Process(target=count, args=(run, name)) for name in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    state = run.state()
    assert (state["a"], state["b"]) == (40, 40)


def test_stop(run: RunDir) -> None:
    other = RunDir.open(run.path)
    assert not run.stop_requested()
    run.clear_stop()
    other.request_stop()
    other.request_stop()
    assert run.stop_requested()
    run.clear_stop()
    assert not other.stop_requested()
