"""The closing table: the best beside the best parent and the plain average, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.report import layers, numbers, sources, switched, trade, variants
from evolve.types import Failed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rich.console import RenderableType

    from evolve.report.summary import Summary
    from evolve.report.views import Entry
    from evolve.score.statistics import Comparison, Verdict
    from evolve.types import Split, Training

FOOTNOTE = (
    "[low, high] are 95 % intervals over items; differences are paired over the same items. "
    "The search chose the best by its search score, which therefore flatters it: trust the holdout."
)


_MOST_FRONT = 8
"""Most rows of the front of gain against forgetting in the terminal."""

POINT = 0.01
"""No loss: the whole interval of the difference is above minus this."""


def rows(summary: Summary, entries: tuple[Entry, ...]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table of ``entries``."""
    header = ["model", "search", "best minus this"]
    if summary.has_holdout:
        header += ["holdout", "best minus this (holdout)"]
    cells = []
    for entry in entries:
        row = [entry.label, scored(entry, "search"), gap(entry, "search")]
        if summary.has_holdout:
            row += [scored(entry, "holdout"), gap(entry, "holdout")]
        cells.append(row)
    return header, cells


def source_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table of models: tasks, what is kept of each parent, size and speed."""
    return sources.cells(summary.sources, {task: metric for task, (metric, weight) in summary.tasks.items()})


def final_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the last choice: search score, the half that chose, the other half."""
    header = ["candidate", "search", "half that chose", "holdout (other half)", "search minus holdout"]
    cells = []
    for entry in summary.finalists:
        if entry.choice is None:
            continue
        winner = summary.best is not None and entry.recipe == summary.best.recipe
        found = entry.shrinkage
        cells.append(
            [
                f"{entry.name} (winner)" if winner else entry.name,
                scored(entry, "search"),
                numbers.interval(entry.choice.value, entry.choice.low, entry.choice.high),
                scored(entry, "holdout"),
                numbers.difference(found.value, found.low, found.high) if found else numbers.MISSING,
            ]
        )
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
    for stacking in summary.stackings:
        facts.append((f"layers of the best ({stacking.stage})", layers.described(stacking)))
    for training in summary.training:
        facts.append((f"training of the best ({training.stage})", trained(training)))
    facts += _cautions(summary)
    if summary.hot_score:
        facts.append(("best in the running engine", _plain_score(summary.hot_score)))
    if summary.fresh_score:
        facts.append(("exported folder, fresh process", _plain_score(summary.fresh_score)))
    return facts


def trained(training: Training) -> str:
    """Return one line about a training: its first and last loss, its steps, tokens and time."""
    curve = training.curve()
    loss = f"loss {curve[0][1]:.4g} to {curve[-1][1]:.4g} nats a token, " if curve else ""
    size = f"{training.steps} steps, {sources.count(training.tokens)} tokens"
    return f"{loss}{size}, {numbers.duration(training.seconds)}"


def _cautions(summary: Summary) -> list[tuple[str, str]]:
    """Return what a reader must know before trusting the winner."""
    found: list[tuple[str, str]] = []
    best = summary.best
    if best is not None and best.shrinkage is not None:
        ends = best.shrinkage
        found.append(("search minus holdout", numbers.difference(ends.value, ends.low, ends.high)))
    for split, broken in best.broken.items() if best is not None else ():
        if broken:
            lost = ", ".join(f"{task} by {excess:.4f} beyond the limit" for task, excess in broken.items())
            found.append((f"loses too much ({split})", lost))
    found += variants.facts(summary.variants)
    return found + [("overlap", line) for line in _overlaps(summary.overlaps)]


def _overlaps(overlaps: Collection[Mapping[str, Any]]) -> list[str]:
    """Return a line for each overlap, for each text that could not be read, and for all others."""
    found: list[str] = []
    dirty: set[str] = set()
    unread: dict[str, str] = {}
    for one in overlaps:
        if one["shared"]:
            found.append(describe(one))
            dirty.add(one["corpus"])
        if one.get("unread"):
            unread[one["corpus"]] = one["unread"]
    found += [f"{corpus} could not be read to its end: {why}" for corpus, why in unread.items()]
    clean = dict.fromkeys(one["corpus"] for one in overlaps if one["corpus"] not in dirty | unread.keys())
    if clean:
        found.append(f"no item shares text with {', '.join(clean)}")
    return found


def describe(overlap: Mapping[str, Any]) -> str:
    """Return one sentence about the items of a task that a text of the recipe holds."""
    return (
        f"{overlap['shared']} of {overlap['items']} {overlap['split']} items of {overlap['task']} share text "
        f"with {overlap['corpus']}"
    )


def footnote(summary: Summary) -> str:
    """Return what the numbers of the tables mean."""
    if summary.final is None:
        return FOOTNOTE
    count = len(summary.final.numbers)
    return (
        f"{FOOTNOTE} One half of the holdout chose the best among {count} candidates, with intervals that "
        f"hold for all {count} at once; `holdout` is the other half, which had no say."
    )


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
    if summary.sources:
        parts.append(grid(*source_rows(summary), f"models ({split} items)"))
    if summary.final is not None:
        parts.append(grid(*final_rows(summary), "the last choice"))
    if summary.variants.stages:
        parts.append(grid(*variants.rows(summary.variants), "which stages pay"))
    if summary.variants.alone is not None:
        parts.append(grid(*variants.alone_rows(summary.variants.alone), "new tokens before any training"))
    if summary.switched:
        parts.append(grid(*switched.cells(summary.switched), "stages on and off in the search"))
    if summary.trade is not None:
        title = f"gain against forgetting, counted from {summary.trade.start}"
        parts.append(grid(*trade.cells(summary.trade, most=_MOST_FRONT), title))
    parts.extend(Text(f"{name}: {text}") for name, text in facts(summary))
    said = [footnote(summary), sources.note(summary.sources) if summary.sources else ""]
    said += [switched.NOTE if summary.switched else "", trade.NOTE if summary.trade else ""]
    parts.append(Text(" ".join(note for note in said if note), "dim"))
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
    parts = [_relation(summary, name, found) for name, found in rivals if found is not None]
    if not parts:
        return f"best is trial {summary.best.number}; nothing to compare it with"
    return f"trial {summary.best.number} is {' and '.join(parts)} on {split} items"


def _relation(summary: Summary, name: str, found: Comparison) -> str:
    """Return ``better than NAME``; where nobody can tell, also whether a loss of a point is excluded."""
    relation = f"{_RELATIONS[found.verdict]} {name}"
    points = summary.score is not None and summary.score.objective == "weighted"
    if points and found.verdict == "cannot tell" and found.no_worse_than(POINT):
        return f"{relation} (no loss: at most 1 point worse)"
    return relation


def strongest(summary: Summary, split: Split) -> Entry | None:
    """Return the parent with the highest score on a split."""
    known = [(entry, entry.scored(split)) for entry in summary.parents]
    values = [(scored.value, entry) for entry, scored in known if scored is not None]
    return max(values, key=lambda pair: pair[0])[1] if values else None


def scored(entry: Entry, split: Split) -> str:
    """Return a score with its interval, the kind of a failure, or ``-``."""
    outcome = entry.outcome(split)
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
