"""The closing table: the best beside the best parent and the plain average, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.report import numbers
from evolve.score.intervals import task_interval
from evolve.types import Failed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from evolve.report.summary import Entry, Summary
    from evolve.score.statistics import Comparison, Verdict
    from evolve.types import Split

FOOTNOTE = (
    "[low, high] are 95 % intervals over items; differences are paired over the same items. "
    "The search chose the best by its search score, which therefore flatters it: trust the holdout."
)


def rows(summary: Summary, entries: tuple[Entry, ...]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table of ``entries``."""
    header = ["model", "search", "best minus this"]
    if summary.has_holdout:
        header += ["holdout", "best minus this (holdout)"]
    cells = []
    for entry in entries:
        row = [label(entry), scored(entry, "search"), gap(entry, "search")]
        if summary.has_holdout:
            row += [scored(entry, "holdout"), gap(entry, "holdout")]
        cells.append(row)
    return header, cells


def task_rows(summary: Summary, split: Split) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table of tasks: one row a task, one column a model."""
    header = ["task", "metric", "weight", *(label(entry) for entry in summary.table)]
    cells = []
    for task, (metric, weight) in summary.tasks.items():
        row = [task, metric, f"{weight:g}"]
        for entry in summary.table:
            outcome = entry.scored(split)
            result = outcome.tasks.get(task) if outcome else None
            found = task_interval(result) if result else None
            row.append(numbers.interval(found.value, found.low, found.high) if found else numbers.MISSING)
        cells.append(row)
    return header, cells


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Return ``(label, text)`` of what stands below the tables."""
    complete = summary.states.get("complete", 0)
    facts = [("candidates", f"{complete} of {summary.trials}" if summary.trials else str(complete))]
    if any(summary.failures.values()):
        facts.append(("failed", numbers.failures(dict(summary.failures))))
    if summary.reason:
        facts.append(("stopped because", summary.reason))
    if summary.elapsed is not None:
        facts.append(("time of the last start", numbers.duration(summary.elapsed)))
    if summary.candidates:
        phases = (
            f"{phase} {numbers.duration(seconds / summary.candidates)}"
            for phase, seconds in summary.seconds.items()
        )
        facts.append(("per candidate", ", ".join(phases)))
    if summary.hot_score:
        facts.append(("best in the running engine", _plain_score(summary.hot_score)))
    if summary.fresh_score:
        facts.append(("exported folder, fresh process", _plain_score(summary.fresh_score)))
    return facts


def tables(summary: Summary) -> list[RenderableType]:
    """Return what `evolve run` prints at its end, ready for a rich console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def grid(header: list[str], cells: list[list[str]], title: str) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title=Text(title, "bold"), title_justify="left")
        for index, name in enumerate(header):
            table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        return table

    if not summary.table:
        return [Text(f"{summary.name}: nothing has been scored yet")]
    split: Split = "holdout" if summary.has_holdout else "search"
    parts: list[RenderableType] = [grid(*rows(summary, summary.table), f"{summary.name}: {verdict(summary)}")]
    if summary.tasks:
        parts.append(grid(*task_rows(summary, split), f"tasks ({split} items)"))
    parts.extend(Text(f"{name}: {text}") for name, text in facts(summary))
    parts.append(Text(FOOTNOTE, "dim"))
    return parts


def verdict(summary: Summary) -> str:
    """Return one sentence: is the best better than the best parent and than the plain average?"""
    if summary.best is None:
        return "no candidate has a score yet"
    split: Split = "holdout" if summary.has_holdout else "search"
    rivals: list[tuple[str, Comparison | None]] = []
    parent = strongest(summary, split)
    if parent is not None:
        rivals.append((f"the best parent ({parent.name})", parent.gaps.get(split)))
    if summary.average is not None:
        rivals.append(("the plain average", summary.average.gaps.get(split)))
    parts = [f"{_RELATIONS[found.verdict]} {name}" for name, found in rivals if found is not None]
    if not parts:
        return f"best is trial {summary.best.number}; nothing to compare it with"
    return f"trial {summary.best.number} is {' and '.join(parts)} on {split} items"


def strongest(summary: Summary, split: Split) -> Entry | None:
    """Return the parent with the highest score on a split."""
    known = [(entry, entry.scored(split)) for entry in summary.parents]
    values = [(scored.value, entry) for entry, scored in known if scored is not None]
    return max(values, key=lambda pair: pair[0])[1] if values else None


def label(entry: Entry) -> str:
    """Return how an entry is called in a table."""
    if entry.role == "best":
        return f"best (trial {entry.number})"
    return "plain average" if entry.role == "average" else entry.name


def scored(entry: Entry, split: Split) -> str:
    """Return a score with its interval, the kind of a failure, or ``-``."""
    outcome = entry.search if split == "search" else entry.holdout
    if isinstance(outcome, Failed):
        return f"failed: {outcome.kind}"
    found = entry.intervals.get(split)
    return numbers.interval(found.value, found.low, found.high) if found else numbers.MISSING


def gap(entry: Entry, split: Split) -> str:
    """Return how much better the best is than ``entry``, with its interval, or ``-``."""
    found = entry.gaps.get(split)
    return numbers.difference(found.difference, found.low, found.high) if found else numbers.MISSING


_RELATIONS: Mapping[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "cannot tell": "not clearly different from",
}


def _plain_score(score: object) -> str:
    """Return a score that the run's state holds: an outcome as JSON."""
    if not isinstance(score, dict) or not isinstance(score.get("value"), int | float):
        return str(score)
    return numbers.score(score["value"], score.get("stderr"))
