"""``evolve run``: search, or go on with a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evolve.cli.options import (
    config_argument,
    display_option,
    load_config,
    overrides_argument,
    runs_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.display.watch import Mode


@click.command()
@config_argument
@overrides_argument
@runs_option
@display_option
@click.option("--allow-config-change", is_flag=True, help="Go on although the config differs from the run's.")
def run(
    config: Path, overrides: tuple[str, ...], runs: Path, display: Mode, allow_config_change: bool
) -> None:
    """Search for the best recipe of CONFIG, or go on.

    KEY.PATH=VALUE overrides a key of the config, as in search.trials=200. A run that was stopped, by
    Ctrl-C or by a power cut, goes on where it was: nothing that was scored is scored again.
    """
    from evolve.cli.drive import drive

    loaded = load_config(config, overrides)
    drive(loaded, runs=runs, display=display, allow_config_change=allow_config_change)
