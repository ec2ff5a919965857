"""``evolve validate``: everything that can be wrong, before anything expensive is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evolve.cli.options import config_argument, load_config, overrides_argument, runs_option, warn
from evolve.cli.output import print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.score.overlap import Overlap
    from evolve.validation import Checked


@click.command()
@config_argument
@overrides_argument
@runs_option
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
def validate(config: Path, overrides: tuple[str, ...], runs: Path, style: str) -> None:
    """Check CONFIG, and say what a search would take.

    Checks the parents and the tasks too. Reads headers and task data, no weights. All problems are
    shown at once; with any of them the exit code is 2.
    """
    from evolve.validation import check

    loaded = load_config(config, overrides)
    checked = check(loaded, runs=runs)
    if style == "json":
        print_json(_json(checked))
        return
    print_table(["", ""], _rows(checked), title=f"{config}: no problems found")
    for warning in checked.warnings:
        warn(warning)


def _rows(checked: Checked) -> list[tuple[str, str]]:
    from evolve.report import numbers

    facts = checked.facts
    rows = [("parents", ", ".join(checked.parents))]
    rows.append(
        ("candidate", f"{facts.parameters / 1e6:.1f} M parameters, {numbers.size(facts.model_bytes)}")
    )
    for task, (search, holdout) in facts.items.items():
        rows.append((f"task {task}", f"{search} items for the search, {holdout} for the holdout"))
    rows += [
        (
            f"overlap with {one.corpus}",
            _overlap(one),
        )
        for one in checked.overlaps
    ]
    if not facts.genes:
        return [*rows, ("genes", "0: a fixed recipe, for `evolve build`")]
    return [
        *rows,
        ("genes", str(facts.genes)),
        ("trials", f"{facts.trials} in {facts.generations} generations of {facts.population}"),
        ("evaluators", str(facts.evaluators)),
        ("memory", f"{numbers.size(facts.memory)} an evaluator, {numbers.size(facts.memory_free)} free"),
        ("disk", f"{numbers.size(facts.disk)}, {numbers.size(facts.disk_free)} free"),
        (
            "time",
            f"very roughly {numbers.duration(facts.seconds / 3)} to {numbers.duration(facts.seconds * 3)}, "
            "by the sizes of model and tasks",
        ),
    ]


def _overlap(one: Overlap) -> str:
    found = f"{one.shared} of {one.items} {one.split} items of {one.task} (too short to seek: {one.short})"
    return f"at least {found}: it could not be read to its end" if one.unread else found


def _json(checked: Checked) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "parents": {name: asdict(parent) for name, parent in checked.parents.items()},
        "warnings": list(checked.warnings),
        "facts": asdict(checked.facts),
        "overlaps": [asdict(one) for one in checked.overlaps],
    }
