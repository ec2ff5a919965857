"""``evolve status``: what a run is doing, and how good it is so far."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import find_run, format_option, run_argument, runs_option
from evolve.cli.output import print_csv, print_json, print_rich, table
from evolve.cli.reading import read_run, summary_of

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.store.rundir import RunDir


@click.command()
@run_argument
@runs_option
@format_option
@click.option("--watch", is_flag=True, help="Keep showing it, until the run ends or Ctrl-C.")
def status(run: str, runs: Path, style: str, watch: bool) -> None:
    """Show what RUN is doing and how good it is so far.

    The best so far stands beside the parents and the plain average.
    """
    if watch:
        _watch(find_run(run, runs))
        return
    folder, material = read_run(run, runs)
    summary = summary_of(folder, material)
    holder = working(folder)
    if style == "table":
        from evolve.display.progress import progress_of
        from evolve.report import text

        progress = progress_of(folder.path.name, material.state, 0, per_minute=None, now=time.time())
        facts = [*progress.facts(), ("process", _sentence(folder, holder, progress.phase))]
        print_rich(table(["", ""], facts, title=folder.path.name), *text.tables(summary))
        return
    from evolve.report.data import to_json

    report = to_json(summary)
    found: dict[str, Any] = {
        "name": folder.path.name,
        "path": str(folder.path),
        "working": holder is not None,
        "holder": holder,
        **material.state,
        "states": report["states"],
        "best": report["best"],
        "parents": report["parents"],
        "average": report["average"],
        "verdict": report["verdict"],
    }
    if style == "json":
        print_json(found)
        return
    keys = ("name", "phase", "working", "reason", "generation", "trials", "complete", "running")
    row = {key: found.get(key) for key in keys}
    row["failed"] = sum(summary.failures.values())
    row["best"] = material.state.get("best")
    row["best_parent"], row["average"] = material.state.get("best_parent"), material.state.get("average")
    print_csv([row])


def working(run: RunDir) -> dict[str, Any] | None:
    """Return who works on the run now, or None. Takes no lock."""
    from evolve.store.locks import holder

    found = holder(run.path / "lock")
    if not found:
        return None
    if found.get("host") != socket.gethostname():
        # Whether it lives cannot be seen from here; its name in the lock is the best that is known.
        return found
    try:
        os.kill(int(found["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return None
    except PermissionError:
        pass
    return found


def _sentence(run: RunDir, holder: dict[str, Any] | None, phase: str) -> str:
    if holder is not None:
        return f"pid {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
    if phase == "done":
        return "none: the run is finished"
    return f"none: the run has stopped; `evolve resume {run.path.name}` goes on with it"


def _watch(run: RunDir) -> None:
    from evolve.display.watch import watch

    with watch(run, "auto"):
        while run.state().get("phase") != "done" and working(run) is not None:
            time.sleep(1)
