"""``evolve eval``: score models as a search would, and compare them item by item."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from evolve.cli.options import format_option, load_config
from evolve.cli.output import print_csv, print_json, print_table
from evolve.errors import ModelError, UserError
from evolve.types import Failed, Scored, outcome_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.report.sources import Row
    from evolve.report.trade import Pair
    from evolve.score.statistics import Comparison
    from evolve.types import Outcome, Parent, Split, TaskScore

_NOTE = (
    "[low, high] are 95 % intervals over items; differences are paired over the same items. P(better): share "
    "of paired bootstrap draws in which the first is better. no loss: the whole interval is above -1 point."
)

_TRADE = (
    "gain and forgetting: how much better than {} on the tasks of role gain, how much worse on those of role "
    "retention; plain means over the tasks of paired differences."
)


class _Plan(NamedTuple):
    """What is scored, and how."""

    score: ScoreConfig
    splits: tuple[Split, ...]
    threads: int
    known: Mapping[str, str]
    """Name to source of the models of the config."""


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--config", type=click.Path(path_type=Path), help="Config whose score block is used.")
@click.option("--tasks", multiple=True, metavar="TASK[:METRIC],...", help="Tasks, in place of a config.")
@click.option("--items", type=click.IntRange(min=1), help="Items per task, with --tasks; absent: all.")
@click.option("--include-path", metavar="DIR", help="Folder with local tasks, with --tasks.")
@click.option("--backend", default="auto", show_default=True, help="Engine, with --tasks.")
@click.option(
    "--parent",
    "named",
    multiple=True,
    metavar="MODEL",
    help="A MODEL whose skill the others should keep; absent: those that the config names.",
)
@click.option(
    "--split",
    type=click.Choice(["search", "holdout", "both"]),
    default="holdout",
    show_default=True,
    help="Which items of a config.",
)
@format_option
@click.pass_context
def evaluate(
    ctx: click.Context, /, models: tuple[str, ...], named: tuple[str, ...], style: str, **options: Any
) -> None:
    """Score MODELs on the tasks of a config, or on --tasks.

    MODEL is a folder or a hub id. The first one is compared with each other one, item by item. Scores are
    weighted means of the metrics, whatever the objective of the config. Where its tasks or scorers have
    roles, gain and forgetting are counted from the first model. The exit code is 1 when a model
    could not be scored.
    """
    from evolve.cli.scoring import score_models

    plan = _plan(options)
    parents = _resolved([*models, *named])
    kept = _kept(parents, named, plan.known)
    outcomes = score_models(parents, plan.score, plan.splits, threads=plan.threads)
    rows = [row for split in plan.splits for row in _rows(parents, split, outcomes, kept, plan.score)]
    if style == "json":
        print_json(rows)
    elif style == "csv":
        print_csv(rows, ("model", "split", "state", "value", "low", "high"))
    else:
        for split in plan.splits:
            _print_tables(parents, split, outcomes, kept, plan.score)
    if any(isinstance(outcome, Failed) for outcome in outcomes.values()):
        ctx.exit(1)


def _plan(options: Mapping[str, Any]) -> _Plan:
    from evolve.cli.adhoc import score_block

    config, tasks = options["config"], options["tasks"]
    if (config is None) == (not tasks):
        raise click.UsageError("give --config CONFIG or --tasks TASK[:METRIC],..., one of them")
    if tasks:
        score = score_block(
            tasks, items=options["items"], include_path=options["include_path"], backend=options["backend"]
        )
        return _Plan(score, ("search",), os.cpu_count() or 1, {})
    loaded = load_config(config)
    block, split = loaded.config.score, options["split"]
    if block is None:
        raise UserError(f"{config}: there is no score block; add the tasks to score on")
    if split != "search" and block.holdout.items == 0:
        if split == "holdout":
            raise UserError(f"{config}: score.holdout.items is 0: there is no holdout; use --split search")
        split = "search"
    splits: tuple[Split, ...] = ("search", "holdout") if split == "both" else (_split(split),)
    return _Plan(block, splits, max(1, int(loaded.config.engine.cpus)), loaded.config.models)


def _split(split: str) -> Split:
    return "holdout" if split == "holdout" else "search"


def _resolved(models: Sequence[str]) -> list[Parent]:
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


def _kept(parents: Sequence[Parent], named: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return the models whose skills are to be kept: what the table calls them, and their name here."""
    from evolve.weights.hub import resolve

    if named:
        return {name: name for name in dict.fromkeys(named)}
    places = {parent.path: parent.name for parent in parents}
    found = {}
    for name, source in known.items():
        try:
            place = resolve(name, source).path
        except ModelError:
            continue  # a model of the config that is not here cannot be among those that are scored
        if place in places:
            found[name] = places[place]
    return found


def _sources(
    parents: Sequence[Parent],
    split: Split,
    outcomes: Mapping[tuple[str, Split], Outcome],
    kept: Mapping[str, str],
    score: ScoreConfig,
) -> dict[str, Row]:
    """Return name to row of the table of models, for those that were scored."""
    from evolve.report.collect import size_of
    from evolve.report.sources import Measured, sources, speed_of
    from evolve.weights.reader import open_model

    def tasks(name: str) -> Mapping[str, TaskScore] | None:
        outcome = outcomes[name, split]
        return outcome.tasks if isinstance(outcome, Scored) else None

    models = [
        Measured(parent.name, outcome, size_of(open_model(parent.path)), speed_of(outcome), index == 0)
        for index, parent in enumerate(parents)
        if isinstance(outcome := outcomes[parent.name, split], Scored)
    ]
    scores = {name: found for name, model in kept.items() if (found := tasks(model)) is not None}
    return {row.label: row for row in sources(models, scores, score)}


def _compared(
    name: str, split: Split, first: str, outcomes: Mapping[tuple[str, Split], Outcome], score: ScoreConfig
) -> Comparison | None:
    from evolve.score.statistics import compare

    leader, other = outcomes[first, split], outcomes[name, split]
    if name == first or not isinstance(leader, Scored) or not isinstance(other, Scored):
        return None
    return compare(leader.tasks, other.tasks, score)


def _traded(
    parents: Sequence[Parent],
    split: Split,
    outcomes: Mapping[tuple[str, Split], Outcome],
    score: ScoreConfig,
) -> dict[str, Pair | None]:
    """Return what each model has gained and forgotten since the first one; empty where nothing has a role."""
    from evolve.report.trade import NOTHING, Trade, pair, roles_of

    first, roles = parents[0].name, roles_of(score)
    began = outcomes[first, split]
    if not roles or not isinstance(began, Scored):
        return {}
    trade = Trade(first, roles, ())
    found = {
        parent.name: pair(outcome.tasks, began.tasks, trade)
        for parent in parents[1:]
        if isinstance(outcome := outcomes[parent.name, split], Scored)
    }
    return {first: NOTHING, **found}


def _rows(
    parents: Sequence[Parent],
    split: Split,
    outcomes: Mapping[tuple[str, Split], Outcome],
    kept: Mapping[str, str],
    score: ScoreConfig,
) -> list[dict[str, Any]]:
    """Return a JSON object for each model."""
    from evolve.report.data import comparison
    from evolve.report.sources import ends, to_json
    from evolve.report.trade import pair_ends

    table = _sources(parents, split, outcomes, kept, score)
    traded = _traded(parents, split, outcomes, score)
    rows = []
    for parent in parents:
        outcome = outcomes[parent.name, split]
        row: dict[str, Any] = {
            "model": parent.name,
            "split": split,
            **outcome_to_json(outcome, items=False),
        }
        if parent.name in table:
            found = table[parent.name]
            (more,) = to_json([found])
            for task, interval in found.tasks.items():
                row["tasks"][task] |= {"low": ends(interval)["low"], "high": ends(interval)["high"]}
            row |= {"low": more["average"]["low"], "high": more["average"]["high"]}
            row |= {
                key: more[key] for key in ("kept", "kept_tasks", "parameters", "bytes", "items_per_second")
            }
            gap = _compared(parent.name, split, parents[0].name, outcomes, score)
            row["first_minus_this"] = comparison(gap) if gap else None
        if parent.name in traded:
            both = traded[parent.name]
            row |= {"gain": None, "forgetting": None} if both is None else pair_ends(both)
        rows.append(row)
    return rows


def _print_tables(
    parents: Sequence[Parent],
    split: Split,
    outcomes: Mapping[tuple[str, Split], Outcome],
    kept: Mapping[str, str],
    score: ScoreConfig,
) -> None:
    from evolve.report import numbers
    from evolve.report.sources import NOTE, cells
    from evolve.report.text import POINT
    from evolve.report.trade import pair_cells

    table = _sources(parents, split, outcomes, kept, score)
    traded = _traded(parents, split, outcomes, score)
    if table:
        header, lines = cells(list(table.values()), {task.task: task.metric for task in score.counted})
        if traded:
            header += ["gain", "forgetting"]
            lines = [[*line, *pair_cells(traded.get(name))] for name, line in zip(table, lines, strict=True)]
        print_table(header, lines, title=f"models ({split} items)")
    for parent in parents:
        outcome = outcomes[parent.name, split]
        if isinstance(outcome, Failed):
            click.echo(f"{parent.name} failed: {outcome.kind}: {outcome.message}")
    gaps = []
    for parent in parents[1:]:
        gap = _compared(parent.name, split, parents[0].name, outcomes, score)
        if gap is not None:
            difference = numbers.difference(gap.difference, gap.low, gap.high)
            loss = "yes" if gap.no_worse_than(POINT) else "no"
            gaps.append([parent.name, difference, gap.verdict, f"{gap.superiority:.3f}", loss])
    if gaps:
        header = ["model", "first minus this", "the first is", "P(better)", "no loss"]
        print_table(header, gaps, title=f"{parents[0].name} against the others")
    said = [_NOTE, *([NOTE] if table else []), *([_TRADE.format(parents[0].name)] if traded else [])]
    click.echo(" ".join(said))
