"""``evolve show``: one candidate in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import format_option, run_argument, runs_option
from evolve.cli.output import print_csv, print_json, print_rich, table
from evolve.cli.paths import shown
from evolve.cli.reading import pick_trial, read_run
from evolve.cli.trials import trial_json
from evolve.types import Job, outcome_to_json, training_to_json

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from evolve.report.collect import Material, Trial
    from evolve.store.rundir import RunDir
    from evolve.types import Scored


@click.command()
@run_argument
@click.argument("number", type=click.IntRange(min=0))
@runs_option
@format_option
def show(run: str, number: int, runs: Path, style: str) -> None:
    """Show one trial of RUN in full.

    Its parameters, scores, times, recipe, and where its log is.
    """
    folder, material = read_run(run, runs)
    trial = pick_trial(material, number)
    log = _log(folder, trial)
    found = trial_json(trial)
    if style == "csv":
        print_csv([found])
        return
    if style == "json":
        from evolve.report import layers

        found["phases"] = dict(trial.outcome.seconds) if trial.outcome else None
        found["tasks"] = outcome_to_json(trial.outcome).get("tasks") if trial.outcome else None
        found["training"] = [training_to_json(one) for one in material.training.get(trial.recipe_hash, ())]
        found["layers"] = layers.to_json(layers.stackings(trial.recipe)) if trial.recipe else []
        found["log"] = str(log) if log else None
        found["document"] = _document(material, trial)
        print_json(found)
        return
    print_rich(*_tables(material, trial, log))


def _tasks(material: Material, scored: Scored) -> RenderableType:
    """Return the tasks with intervals, and how much better the candidate is there than each parent."""
    from evolve.report import numbers
    from evolve.report.sources import percent
    from evolve.score.intervals import task_interval
    from evolve.score.statistics import kept, task_compare

    score, parents = material.loaded.config.score, material.parents_on("search")
    rows = []
    for name, task in scored.tasks.items():
        found = task_interval(task)
        row = [name, task.metric, numbers.interval(found.value, found.low, found.high)]
        for tasks in parents.values():
            common = name in tasks and task.items.keys() & tasks[name].items.keys()
            gap = task_compare(task, tasks[name]) if common else None
            row.append(numbers.difference(gap.value, gap.low, gap.high) if gap else numbers.MISSING)
        rows.append(row)
    if score is not None and parents:
        shares = [percent(kept(scored.tasks, tasks, score)) for tasks in parents.values()]
        rows.append(["keeps of it", "", "", *shares])
    return table(["task", "metric", "score", *(f"better than {name} by" for name in parents)], rows)


def _document(material: Material, trial: Trial) -> dict[str, Any] | None:
    from evolve.export.recipe import recipe_document

    return recipe_document(trial.recipe, material.parents) if trial.recipe else None


def _log(run: RunDir, trial: Trial) -> Path | None:
    if trial.recipe is None:
        return None
    file = run.path / "logs" / f"{Job(trial.recipe).key}.log"
    return file if file.exists() else None


def _tables(material: Material, trial: Trial, log: Path | None) -> list[RenderableType]:
    from rich.text import Text

    from evolve.config.dump import to_yaml
    from evolve.report import numbers
    from evolve.report.layers import described, stackings
    from evolve.report.text import trained
    from evolve.score.objective import shortfalls
    from evolve.score.statistics import interval

    score = material.loaded.config.score
    facts: list[tuple[str, str]] = [("state", trial.state)]
    if trial.scored is not None and score is not None:
        parents = material.reference("search")
        whole = interval(trial.scored.tasks, score, parents)
        facts.append(("value", numbers.interval(whole.value, whole.low, whole.high)))
        for task, excess in shortfalls(trial.scored.tasks, score, parents).items():
            facts.append(("loses too much", f"{task}: {excess:.4f} below what score.retention allows"))
    if trial.failure is not None:
        facts += [("failure", trial.failure.kind), ("message", trial.failure.message)]
    facts.append(("recipe", trial.recipe_hash or numbers.MISSING))
    if trial.outcome is not None:
        facts += [(phase, numbers.duration(seconds)) for phase, seconds in trial.outcome.seconds.items()]
    for training in material.training.get(trial.recipe_hash, ()):
        facts.append((f"training ({training.stage})", trained(training)))
    for stacking in stackings(trial.recipe) if trial.recipe else ():
        facts.append((f"layers ({stacking.stage})", described(stacking)))
    if log is not None:
        facts.append(("log", shown(log)))
    parts = [table(["", ""], facts, title=f"{material.name}, trial {trial.number}")]
    if trial.scored is not None:
        parts.append(_tasks(material, trial.scored))
    if trial.params:
        params = [
            [name, f"{value:.6g}" if isinstance(value, float) else value]
            for name, value in trial.params.items()
        ]
        parts.append(table(["parameter", "value"], params))
    document = _document(material, trial)
    if document is not None:
        parts.append(Text(to_yaml(document)))
    return parts
