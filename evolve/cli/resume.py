"""``evolve resume``: go on with a run whose config file is not at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evolve.cli.options import display_option, find_run, load_run_config, run_argument, runs_option

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.display.watch import Mode


@click.command()
@run_argument
@runs_option
@display_option
def resume(run: str, runs: Path, display: Mode) -> None:
    """Go on with RUN, with the config that it was started with.

    RUN is a name below --runs, or the path of a run's folder.
    """
    from evolve.cli.drive import drive

    folder = find_run(run, runs)
    drive(
        load_run_config(folder),
        runs=folder.path.parent,
        display=display,
        allow_config_change=False,
        # Folders in a config are relative to where the run was started.
        working_folder=folder.working_folder,
    )
