"""The report as JSON, for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evolve.report.text import verdict
from evolve.types import outcome_to_json

if TYPE_CHECKING:
    from evolve.report.summary import Entry, Summary
    from evolve.score.intervals import Interval
    from evolve.score.statistics import Comparison

FORMAT = 1
"""Raised when a key changes its meaning."""


def to_json(summary: Summary, *, items: bool = False) -> dict[str, Any]:
    """Return the summary as a JSON object without NaN.

    Args:
        summary: The summary.
        items: Whether to keep the metric of every item.
    """
    return {
        "format": FORMAT,
        "name": summary.name,
        "run": summary.run,
        "phase": summary.phase,
        "reason": summary.reason,
        "verdict": verdict(summary),
        "trials": summary.trials,
        "states": dict(summary.states),
        "failures": dict(summary.failures),
        "best": _entry(summary.best, items) if summary.best else None,
        "params": dict(summary.best_params),
        "recipe": summary.best_recipe.pipeline if summary.best_recipe else None,
        "parents": [_entry(entry, items) for entry in summary.parents],
        "average": _entry(summary.average, items) if summary.average else None,
        "top": [_entry(entry, items) for entry in summary.top],
        "tasks": {
            task: {"metric": metric, "weight": weight} for task, (metric, weight) in summary.tasks.items()
        },
        "curve": [
            {
                "number": point.number,
                "value": _finite(point.value),
                "stderr": _finite(point.stderr),
                "best": point.best,
            }
            for point in summary.curve
        ],
        "seconds": dict(summary.seconds),
        "elapsed": summary.elapsed,
        "hot_score": dict(summary.hot_score) if summary.hot_score else None,
        "fresh_score": dict(summary.fresh_score) if summary.fresh_score else None,
        "seed": summary.seed,
    }


def _entry(entry: Entry, items: bool) -> dict[str, Any]:
    outcomes = {"search": entry.search, "holdout": entry.holdout}
    result: dict[str, Any] = {
        "name": entry.name,
        "role": entry.role,
        "number": entry.number,
        "recipe": entry.recipe,
        "intervals": {split: _ends(found.value, found) for split, found in entry.intervals.items()},
        "gaps": {
            split: {**_ends(found.difference, found), "verdict": found.verdict, "items": found.items}
            for split, found in entry.gaps.items()
        },
    }
    for split, outcome in outcomes.items():
        result[split] = outcome_to_json(outcome) if outcome else None
        if outcome and not items:
            for task in result[split].get("tasks", {}).values():
                del task["items"]
    return result


def _ends(value: float, found: Interval | Comparison) -> dict[str, Any]:
    return {"value": _finite(value), "low": _finite(found.low), "high": _finite(found.high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
