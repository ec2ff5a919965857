"""``evolve trials``: every candidate of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import format_option, run_argument, runs_option
from evolve.cli.output import print_csv, print_json, print_table
from evolve.cli.reading import read_run

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.report.collect import Trial


@click.command()
@run_argument
@runs_option
@format_option
def trials(run: str, runs: Path, style: str) -> None:
    """List the trials of RUN in order.

    Parents and the plain average are no trials: `evolve best` and `evolve status` show them.
    """
    _, material = read_run(run, runs)
    rows = [trial_json(trial) for trial in material.trials]
    if style == "json":
        print_json(rows)
    elif style == "csv":
        print_csv(rows, ("number", "state", "value", "stderr", "recipe", "seconds"))
    else:
        _print_table(material.trials, title=material.name)


def trial_json(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON; None where something is absent."""
    scored, failure = trial.scored, trial.failure
    seconds = trial.outcome.seconds.get("total") if trial.outcome else None
    metrics = None
    if scored is not None:
        metrics = {f"{name}/{task.metric}": task.value for name, task in scored.tasks.items()}
    return {
        "number": trial.number,
        "state": trial.state,
        "value": trial.value,
        "stderr": scored.stderr if scored else None,
        "metrics": metrics,
        "params": dict(trial.params),
        "recipe": trial.recipe_hash or None,
        "seconds": seconds,
        "failure": {"kind": failure.kind, "message": failure.message} if failure else None,
    }


def _print_table(trials: tuple[Trial, ...], title: str) -> None:
    from evolve.report import numbers

    genes = list(dict.fromkeys(name for trial in trials for name in trial.params))
    tasks = list(dict.fromkeys(name for trial in trials if trial.scored for name in trial.scored.tasks))
    shown = genes[:8]
    rows = []
    for trial in trials:
        scores = trial.scored.tasks if trial.scored else {}
        seconds = trial.outcome.seconds.get("total") if trial.outcome else None
        rows.append(
            [
                trial.number,
                trial.state if trial.failure is None else f"failed: {trial.failure.kind}",
                numbers.score(trial.value, trial.scored.stderr if trial.scored else None),
                *(numbers.number(scores[name].value) if name in scores else "-" for name in tasks),
                *(_value(trial.params.get(name)) for name in shown),
                numbers.duration(seconds),
                trial.recipe_hash,
            ]
        )
    print_table(["trial", "state", "value", *tasks, *shown, "time", "recipe"], rows, title=title)
    if len(genes) > len(shown):
        click.echo(f"{len(genes) - len(shown)} more parameters: --format json or `evolve show` has them all")


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
