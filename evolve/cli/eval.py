"""``evolve eval``: score models as a search would, and compare them item by item."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import format_option, load_config
from evolve.cli.output import print_csv, print_json, print_table
from evolve.errors import ModelError, UserError
from evolve.types import Failed, Scored, outcome_to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.types import Outcome, Parent, Split


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--config", required=True, type=click.Path(path_type=Path), help="Config whose score block is used."
)
@click.option(
    "--split",
    type=click.Choice(["search", "holdout", "both"]),
    default="holdout",
    show_default=True,
    help="Which items.",
)
@format_option
@click.pass_context
def evaluate(ctx: click.Context, models: tuple[str, ...], config: Path, split: str, style: str) -> None:
    """Score MODELs on the tasks of a config.

    MODEL is a folder or a hub id. The first one is compared with each other one, item by item. The
    exit code is 1 when a model could not be scored.
    """
    from evolve.cli.scoring import score_models

    loaded = load_config(config)
    score = loaded.config.score
    if score is None:
        raise UserError(f"{config}: there is no score block; add the tasks to score on")
    if split != "search" and score.holdout.items == 0:
        if split == "holdout":
            raise UserError(f"{config}: score.holdout.items is 0: there is no holdout; use --split search")
        split = "search"
    splits: tuple[Split, ...] = ("search", "holdout") if split == "both" else (_split(split),)
    parents = _parents(models)
    threads = max(1, int(loaded.config.engine.cpus))
    outcomes = score_models(parents, score, splits, threads=threads)
    rows = [
        _row(parent.name, split, outcomes, parents[0].name, score) for parent in parents for split in splits
    ]
    if style == "json":
        print_json(rows)
    elif style == "csv":
        print_csv(rows, ("model", "split", "state", "value", "low", "high"))
    else:
        _print_table(rows, score)
    if any(isinstance(outcome, Failed) for outcome in outcomes.values()):
        ctx.exit(1)


def _split(split: str) -> Split:
    return "holdout" if split == "holdout" else "search"


def _parents(models: Sequence[str]) -> list[Parent]:
    from evolve.weights.hub import resolve

    parents, faults = [], []
    for model in dict.fromkeys(models):
        try:
            parents.append(resolve(model, model))
        except ModelError as error:
            faults.append(str(error))
    if faults:
        raise ModelError("\n".join(faults))
    return parents


def _row(
    name: str,
    split: Split,
    outcomes: dict[tuple[str, Split], Outcome],
    first: str,
    score: ScoreConfig,
) -> dict[str, Any]:
    from evolve.score.statistics import compare, interval

    outcome = outcomes[name, split]
    row: dict[str, Any] = {"model": name, "split": split, **outcome_to_json(outcome)}
    if not isinstance(outcome, Scored):
        return row
    for task in row["tasks"].values():
        del task["items"]
    found = interval(outcome.tasks, score)
    row |= {"low": found.low, "high": found.high, "first_minus_this": None}
    leader = outcomes[first, split]
    if name != first and isinstance(leader, Scored):
        gap = compare(leader.tasks, outcome.tasks, score)
        row["first_minus_this"] = {
            "value": gap.difference,
            "low": gap.low,
            "high": gap.high,
            "verdict": gap.verdict,
        }
    return row


def _print_table(rows: list[dict[str, Any]], score: ScoreConfig) -> None:
    from evolve.report import numbers

    tasks = [task.task for task in score.counted]
    cells = []
    for row in rows:
        if row["state"] == "failed":
            cells.append([row["model"], row["split"], f"failed: {row['kind']}: {row['message']}"])
            cells[-1] += [numbers.MISSING] * (1 + len(tasks))
            continue
        gap = row["first_minus_this"] or {}
        cells.append(
            [
                row["model"],
                row["split"],
                numbers.interval(row["value"], row["low"], row["high"]),
                numbers.difference(gap.get("value"), gap.get("low"), gap.get("high")),
                *(numbers.score(row["tasks"][task]["value"], row["tasks"][task]["stderr"]) for task in tasks),
            ]
        )
    print_table(["model", "items", "score", "first minus this", *tasks], cells)
    click.echo("[low, high] and ± are 95 % intervals over items; differences are paired over the same items.")
