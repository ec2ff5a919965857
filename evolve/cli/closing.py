"""What follows a search: the best is exported, scored once more from its files, and reported.

Done a second time it repeats nothing: the exported folder and its score belong to a recipe by its hash.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.cli.options import load_run_config
from evolve.cli.output import print_rich
from evolve.cli.paths import shown
from evolve.errors import EvolveError
from evolve.report import text
from evolve.score.objective import needs_parents, valued
from evolve.types import Scored, outcome_from_json, outcome_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from evolve.config.load import Loaded
    from evolve.report.collect import Material
    from evolve.report.summary import Summary
    from evolve.store.rundir import RunDir

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""Largest difference between the hot and the fresh score that kernels' rounding explains."""


def close(run: RunDir, *, say: Callable[[str], None] | None = None) -> Summary:
    """Export the best of a run, score the export in a fresh process, and write the report.

    Args:
        run: A run whose search is over.
        say: Told what is going on.
    """
    from evolve.report.collect import collect
    from evolve.report.summary import summarise

    say = say or (lambda _: None)
    loaded = load_run_config(run)
    with run.lock("evolve run, exporting the best"):
        material = collect(run, loaded)
        summary = summarise(material, shown(run.path))
        # Before the export, which may fail: what was found out in a night must be there in the morning.
        write_report(run, loaded, summary)
        if summary.best is not None:
            run.write_state(phase="export")
            _export(run, loaded, material, summary, say)
            _score_fresh(run, material, summary, say)
        run.write_state(phase="done")
        summary = summarise(collect(run, loaded), shown(run.path))
        write_report(run, loaded, summary)
    return summary


def write_report(run: RunDir, loaded: Loaded, summary: Summary) -> None:
    """Write report.html and report.json into the run's folder."""
    from evolve.report.data import to_json
    from evolve.report.html import page
    from evolve.store.atomic import write_text

    recipe = ""
    if summary.best_recipe is not None:
        recipe = _recipe_text(run, loaded, summary)
    write_text(run.path / "report.html", page(summary, recipe=recipe, commands=commands(summary)))
    data = json.dumps(to_json(summary), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(run.path / "report.json", data + "\n")


def print_closing(run: RunDir, summary: Summary) -> None:
    """Print the closing table, where everything is, and how to build the best again."""
    from rich.text import Text

    print_rich(*text.tables(summary))
    places = [
        ("report", run.path / "report.html"),
        ("recipe", run.path / "export" / "recipe.yaml"),
        ("model", run.path / "export" / "model"),
    ]
    lines = [f"{name}: {shown(path)}" for name, path in places if path.exists()]
    if summary.best is not None:
        lines += ["build it again:", *(f"  {command}" for command in commands(summary))]
    print_rich(Text("\n".join(lines)))


def commands(summary: Summary) -> list[str]:
    """Return the shell commands that build the best of a run again."""
    recipe = shlex.quote(str(Path(summary.run) / "export" / "recipe.yaml"))
    return [f"evolve build {recipe} OUT"]


def notes(summary: Summary) -> list[str]:
    """Return the sentences that an exported recipe carries."""
    return [
        f"run {summary.name}: {text.verdict(summary)}",
        text.footnote(summary),
        f"search seed {summary.seed}",
    ]


def _recipe_text(run: RunDir, loaded: Loaded, summary: Summary) -> str:
    from evolve.export.recipe import recipe_yaml

    if summary.best_recipe is None:
        return ""
    return recipe_yaml(
        summary.best_recipe,
        run.parents(),
        name=f"{summary.name}-best",
        score=loaded.config.score,
        notes=notes(summary),
        training=summary.training,
    )


def _export(
    run: RunDir, loaded: Loaded, material: Material, summary: Summary, say: Callable[[str], None]
) -> None:
    from evolve.cli.progress import bar
    from evolve.export.model import About, described, export_model
    from evolve.store.atomic import make_folder, write_text
    from evolve.weights.writer import Target

    if summary.best_recipe is None:
        return
    folder = run.path / "export"
    make_folder(folder)
    write_text(folder / "recipe.yaml", _recipe_text(run, loaded, summary))
    model = folder / "model"
    about = About(
        f"{summary.name}-best",
        loaded.config.score,
        text.rows(summary, summary.table),
        [text.footnote(summary)],
        summary.training,
    )
    if built_recipe(model) == summary.best_recipe.hash:
        # The scores in its card may be those of another scoring.
        for name, content in described(summary.best_recipe, material.parents, about).items():
            write_text(model / name, content)
        return
    # An earlier best of this run may go: the recipe of its trial builds it again.
    target = Target(model, replace=bool(built_recipe(model)))
    say(f"exporting the best, trial {summary.best.number if summary.best else '?'}, to {shown(model)}")
    with bar("exporting") as progress:
        export_model(
            summary.best_recipe,
            material.parents,
            target,
            about=about,
            folder=run.working_folder,
            progress=progress,
        )


def built_recipe(model: Path) -> str:
    """Return the hash of the recipe that a folder was exported from, or "" for any other folder."""
    from evolve.weights.files import RECIPE

    try:
        first = (model / RECIPE).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""
    words = first.replace(",", " ").split()
    return words[2] if words[:2] == ["#", "recipe"] and len(words) > 2 else ""


def _score_fresh(run: RunDir, material: Material, summary: Summary, say: Callable[[str], None]) -> None:
    """Score the exported folder in a process of its own, and keep both scores side by side."""
    outcome = summary.best.search if summary.best else None
    if summary.best is None or not isinstance(outcome, Scored):
        return
    recipe = summary.best.recipe
    state = run.state()
    under = {"recipe": recipe, "score_key": state.get("score_key")}
    hot = {**under, **_score_of(outcome_to_json(outcome))}
    known = state.get("fresh_score") or {}
    # One of before the key was written down belongs to the run's only scoring.
    if known and {**under, **known} == {**known, **under}:
        run.write_state(hot_score=hot)
        return
    say("scoring the exported folder in a fresh process")
    try:
        found = evaluate_fresh(run, run.path / "export" / "model")
        fresh = {**under, **_score_of(_valued(found, material))}
    except EvolveError as error:
        logger.warning("the exported folder could not be scored in a fresh process: %s", error)
        run.write_state(hot_score=hot, fresh_score=None)
        return
    run.write_state(hot_score=hot, fresh_score=fresh)
    if abs(fresh["value"] - hot["value"]) > _TOLERANCE:
        logger.warning(
            "the exported folder scores %.6f in a fresh process, the running engine gave %.6f: "
            "do not trust this run's scores before you know why",
            fresh["value"],
            hot["value"],
        )


def evaluate_fresh(run: RunDir, model: Path) -> dict[str, Any]:
    """Score a model folder on the search's items in a new process, with the run's own config.

    Raises:
        EvolveError: The process failed; the message holds the end of what it said.
    """
    command = [sys.executable, "-m", "evolve.cli", "eval", str(model)]
    command += ["--config", str(run.path / "config.yaml"), "--split", "search", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run.working_folder)
    if done.returncode:
        raise EvolveError("\n".join(done.stderr.strip().splitlines()[-5:]))
    (result,) = json.loads(done.stdout)
    found: dict[str, Any] = result
    return found


def _valued(found: dict[str, Any], material: Material) -> dict[str, Any]:
    """Return an outcome with its value: the other process does not know the parents that it may depend on."""
    score = material.loaded.config.score
    if score is None or not needs_parents(score):
        return found
    return outcome_to_json(valued(outcome_from_json(found), score, material.reference("search")))


def _score_of(outcome: dict[str, Any]) -> dict[str, Any]:
    tasks = {name: task["value"] for name, task in outcome["tasks"].items()}
    return {"value": outcome["value"], "stderr": outcome["stderr"], "tasks": tasks}
