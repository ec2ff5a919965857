"""``evolve best``: the best candidates beside the parents and the plain average."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import format_option, run_argument, runs_option
from evolve.cli.output import print_csv, print_json, print_rich, print_table
from evolve.cli.reading import read_run, summary_of

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.report.summary import Summary


@click.command()
@run_argument
@click.option("-k", "count", type=click.IntRange(min=1), default=5, show_default=True, help="How many.")
@runs_option
@format_option
def best(run: str, count: int, runs: Path, style: str) -> None:
    """List the best candidates of RUN beside the baselines.

    The winner first, then by the search score. The baselines are the parents and the plain average. Equal
    recipes are listed once.
    The best few have holdout scores, on the half of the items that did not choose the winner.
    """
    from evolve.report import text
    from evolve.report.data import to_json

    folder, material = read_run(run, runs)
    summary = _winner_first(summary_of(folder, material, top=count), count)
    report = to_json(summary)
    entries = [*report["top"], *report["parents"], *([report["average"]] if report["average"] else [])]
    if style == "json":
        print_json(entries)
    elif style == "csv":
        print_csv([_row(entry) for entry in entries])
    else:
        baselines = summary.table[1:] if summary.best else summary.table
        header, cells = text.rows(summary, (*summary.top, *baselines))
        print_table(header, cells, title=f"{summary.name}: {text.verdict(summary)}")
        from rich.text import Text

        print_rich(Text(text.footnote(summary), "dim"))


def _winner_first(summary: Summary, count: int) -> Summary:
    """Put the winner in front, which the holdout may have chosen from behind the first ``count``."""
    best = summary.best
    if best is None or not summary.top or summary.top[0].recipe == best.recipe:
        return summary
    known = {entry.recipe: entry for entry in (*summary.finalists, *summary.top)}
    others = [entry for entry in summary.top if entry.recipe != best.recipe]
    return replace(summary, top=(known.get(best.recipe, best), *others)[:count])


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    row = {key: entry[key] for key in ("name", "role", "number", "recipe")}
    for split in ("search", "holdout"):
        ends = entry["intervals"].get(split) or {}
        gap = entry["gaps"].get(split) or {}
        row |= {f"{split}_{key}": ends.get(key) for key in ("value", "low", "high")}
        row |= {f"{split}_gap_{key}": gap.get(key) for key in ("value", "low", "high")}
    return row
