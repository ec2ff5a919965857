"""Drives a search in a process that can be killed, and reads what it left behind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


def _body(config: str, runs: str, overrides: tuple[str, ...], allow: bool) -> None:
    log = Path(runs).parent / f"driver-{os.getpid()}.log"
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from evolve.config.load import load
    from evolve.run import run

    run(load(Path(config), overrides), runs=Path(runs), allow_config_change=allow)
    sys.exit(0)


def start(config: Path, runs: Path, *overrides: str, allow: bool = False) -> Any:
    """Start a search in a process of its own and return the process."""
    process = _context.Process(target=_body, args=(str(config), str(runs), overrides, allow))
    process.start()
    return process


def finish(config: Path, runs: Path, *overrides: str, allow: bool = False, timeout: float = 300) -> None:
    """Run a search to its end in a process of its own."""
    process = start(config, runs, *overrides, allow=allow)
    process.join(timeout)
    if process.exitcode != 0:
        log = runs.parent / f"driver-{process.pid}.log"
        text = log.read_text()[-4000:] if log.exists() else ""
        raise AssertionError(f"exit code {process.exitcode}:\n{text}")


class Left(NamedTuple):
    """What a run left: everything that must not depend on kills, workers or engines."""

    trials: list[tuple[int, str, float | None, tuple[tuple[str, float], ...], str]]
    outcomes: dict[str, dict[str, Any]]


def left(run: Path) -> Left:
    """Read the trials of the study and all outcomes, times left out."""
    from evolve.config.load import load
    from evolve.store.rundir import RunDir
    from evolve.store.study import load_trials

    folder = RunDir.open(run)
    url = load(run / "config.yaml").config.search.storage
    rows = load_trials(folder, url, folder.state()["study"])
    trials = [
        (row.number, row.state, row.value, tuple(sorted(row.values.items())), row.recipe) for row in rows
    ]
    return Left(trials, {key: value for key, (value, _) in records(run).items()})


def records(run: Path) -> dict[str, tuple[dict[str, Any], tuple[int, int]]]:
    """Return job key to its outcome without times, and the identity of the file that holds it."""
    found = {}
    for path in (run / "candidates").glob("*/*.json"):
        with contextlib.suppress(FileNotFoundError):
            outcome = json.loads(path.read_text())["outcome"]
            outcome.pop("seconds", None)
            for training in outcome.get("training", ()):
                training.pop("seconds")
            status = path.stat()
            found[path.stem] = (outcome, (status.st_ino, status.st_mtime_ns))
    return found
