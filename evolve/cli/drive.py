"""What ``run`` and ``resume`` share: search, close, and print what was found."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evolve.cli import logs
from evolve.cli.options import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.config.load import Loaded
    from evolve.display.watch import Mode
    from evolve.store.rundir import RunDir


def drive(
    loaded: Loaded,
    *,
    runs: Path,
    display: Mode,
    allow_config_change: bool,
    working_folder: Path | None = None,
) -> None:
    """Search to the end, export the best, write the report, and print the closing table.

    Args:
        loaded: The config.
        runs: Folder that holds the runs.
        display: How progress is shown.
        allow_config_change: Go on although the config differs from the run's.
        working_folder: What the config's folders are relative to; absent: the working directory.
    """
    from evolve.cli.closing import close, print_closing
    from evolve.run import run

    @contextlib.contextmanager
    def watched(folder: RunDir) -> Iterator[None]:
        from evolve.display.watch import watch

        logs.attach(folder.path / "logs" / "driver.log")
        with watch(folder, display):
            yield

    say = _say if display != "none" else _silent
    say(f"checking {loaded.source}, its parents and tasks")
    runs = runs.absolute()
    with contextlib.chdir(working_folder or Path.cwd()):
        folder = run(
            loaded,
            runs=runs,
            allow_config_change=allow_config_change,
            watch=watched,
            notify=warn,
        )
    summary = close(folder, say=say)
    print_closing(folder, summary)


def _silent(message: str) -> None:
    """Say nothing."""


def _say(message: str) -> None:
    click.echo(message, err=True)
