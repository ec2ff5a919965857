"""``evolve export``: a candidate as a recipe, as mergekit's YAML, or as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evolve.cli.options import force_option, run_argument, runs_option, shard_option
from evolve.cli.paths import confirm_free, shown
from evolve.cli.reading import pick_trial, read_run, summary_of
from evolve.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.report.collect import Material, Trial
    from evolve.report.summary import Summary
    from evolve.store.rundir import RunDir
    from evolve.types import Recipe, Training
    from evolve.weights.writer import Target


@click.command()
@run_argument
@click.option(
    "--to",
    "target",
    type=click.Choice(["recipe", "mergekit", "model"]),
    default="recipe",
    show_default=True,
    help="A config for `evolve build`, a YAML for mergekit, or a model folder.",
)
@click.option("--trial", "number", type=click.IntRange(min=0), help="Its number; absent: the best.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, allow_dash=True),
    help="File or folder to write; - for stdout; absent: in the run's folder, below export/.",
)
@shard_option
@force_option
@runs_option
def export(
    run: str, target: str, number: int | None, out: Path | None, shard_bytes: int, force: bool, runs: Path
) -> None:
    """Write the best of RUN as recipe, mergekit YAML or model."""
    from evolve.cli.closing import built_recipe
    from evolve.weights.writer import Target

    folder, material = read_run(run, runs)
    summary = summary_of(folder, material)
    trial = _trial(material, summary, number)
    recipe = _recipe(trial)
    place = out or _default(folder, summary, trial, target)
    if target == "model":
        if out is not None or built_recipe(place) != recipe.hash:
            _model(material, summary, trial, Target(place, shard_bytes, force), folder.working_folder)
    else:
        text = _text(material, summary, trial, recipe, target)
        if str(place) == "-":
            click.echo(text, nl=False)
            return
        if out is not None and not force:
            confirm_free(out)
        _write(place, text)
    click.echo(f"trial {trial.number}: {shown(place.absolute())}")


def _trial(material: Material, summary: Summary, number: int | None) -> Trial:
    if number is not None:
        return pick_trial(material, number)
    if summary.best is None or summary.best.number is None:
        raise RunError(f"{material.name} has no candidate with a score yet: there is nothing to export")
    return pick_trial(material, summary.best.number)


def _recipe(trial: Trial) -> Recipe:
    if trial.recipe is None or trial.scored is None:
        cause = f"it failed ({trial.failure.kind})" if trial.failure else f"it is {trial.state}"
        raise RunError(f"trial {trial.number} cannot be exported: {cause}. `evolve best` lists the good ones")
    return trial.recipe


def _default(run: RunDir, summary: Summary, trial: Trial, target: str) -> Path:
    best = summary.best is not None and summary.best.number == trial.number
    name = target if best else f"{target}-trial-{trial.number}"
    return run.path / "export" / (name if target == "model" else f"{name}.yaml")


def notes(material: Material, summary: Summary, trial: Trial) -> list[str]:
    """Return the sentences that the exported candidate carries: its scores beside those of the rivals."""
    from evolve.report import numbers, text
    from evolve.score.statistics import interval

    found = [f"run {material.name}, trial {trial.number}, search seed {summary.seed}"]
    if trial.scored is not None and material.loaded.config.score is not None:
        score = interval(trial.scored.tasks, material.loaded.config.score, material.reference("search"))
        found.append(f"search score {numbers.interval(score.value, score.low, score.high)}")
    for entry in summary.table:
        scores = ", ".join(
            f"{split} {text.scored(entry, split)}"
            for split in ("search", "holdout")
            if split in entry.intervals
        )
        found.append(f"{entry.label}: {scores}" if scores else f"{entry.label}: not scored")
    return [*found, text.footnote(summary)]


def _text(material: Material, summary: Summary, trial: Trial, recipe: Recipe, target: str) -> str:
    from evolve.export.mergekit import mergekit_yaml
    from evolve.export.recipe import recipe_yaml

    lines = notes(material, summary, trial)
    if target == "mergekit":
        return mergekit_yaml(recipe, material.parents, notes=lines)
    return recipe_yaml(
        recipe,
        material.parents,
        name=_title(material, trial),
        score=material.loaded.config.score,
        notes=lines,
        training=_training(trial),
    )


def _model(material: Material, summary: Summary, trial: Trial, target: Target, folder: Path) -> None:
    from evolve.cli.progress import bar
    from evolve.export.model import About, export_model

    if str(target.out) == "-":
        raise click.UsageError("a model is a folder: name it with --out")
    with bar("exporting") as progress:
        export_model(
            _recipe(trial),
            material.parents,
            target,
            about=About(
                _title(material, trial),
                material.loaded.config.score,
                scores(summary, trial),
                notes(material, summary, trial)[:1],
                _training(trial),
            ),
            folder=folder,
            progress=progress,
        )


def scores(summary: Summary, trial: Trial) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return the table of scores of a card: the candidate, if it is listed, then the best and its rivals."""
    from evolve.report import text

    others = [entry for entry in summary.top if entry.number == trial.number]
    first = () if summary.best is not None and summary.best.number == trial.number else tuple(others)
    return text.rows(summary, (*first, *summary.table))


def _training(trial: Trial) -> Sequence[Training]:
    return trial.scored.training if trial.scored is not None else ()


def _title(material: Material, trial: Trial) -> str:
    return f"{material.name}-trial-{trial.number}"


def _write(place: Path, text: str) -> None:
    from evolve.store.atomic import make_folder, write_text

    make_folder(place.parent)
    write_text(place, text)
