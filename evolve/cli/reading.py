"""What the verbs that read a run share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.cli.options import find_run, load_run_config
from evolve.cli.paths import shown
from evolve.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.report.collect import Material, Trial
    from evolve.report.summary import Summary
    from evolve.store.rundir import RunDir


def read_run(run: str, runs: Path) -> tuple[RunDir, Material]:
    """Open a run and read everything in it."""
    from evolve.report.collect import collect

    folder = find_run(run, runs)
    return folder, collect(folder, load_run_config(folder))


def summary_of(folder: RunDir, material: Material, top: int = 5) -> Summary:
    """Return what the run has found."""
    from evolve.report.summary import summarise

    return summarise(material, shown(folder.path), top=top)


def pick_trial(material: Material, number: int) -> Trial:
    """Return the trial with a number.

    Raises:
        RunError: There is none.
    """
    for trial in material.trials:
        if trial.number == number:
            return trial
    if not material.trials:
        raise RunError(
            f"{material.name} has no trials yet; `evolve status {material.name}` says what it does"
        )
    last = material.trials[-1].number
    raise RunError(f"{material.name} has no trial {number}: the numbers go from 0 to {last}")
