"""The report as JSON, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.report import layers, sources, switched, trade, variants
from evolve.report.numbers import finite
from evolve.report.text import POINT, verdict
from evolve.types import outcome_to_json, training_to_json

if TYPE_CHECKING:
    from evolve.report.summary import Summary
    from evolve.report.views import Entry
    from evolve.score.intervals import Interval
    from evolve.score.statistics import Comparison

FORMAT = 2
"""Raised when a key changes its meaning. 2: `holdout` is the half that did not choose, where one half did."""


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
        "objective": summary.score.objective if summary.score else None,
        "sources": sources.to_json(summary.sources),
        "final": _final(summary),
        "finalists": [_entry(entry, items) for entry in summary.finalists],
        "profiles": [
            {"model": one.model, "name": one.name, "values": [finite(value) for value in one.values]}
            for one in summary.profiles
        ],
        "stackings": layers.to_json(summary.stackings),
        "training": [training_to_json(one) for one in summary.training],
        "switched": switched.to_json(summary.switched),
        "trade": trade.to_json(summary.trade),
        "overlaps": [dict(one) for one in summary.overlaps],
        "variants": variants.to_json(summary.variants),
        "tasks": {
            task: {"metric": metric, "weight": weight} for task, (metric, weight) in summary.tasks.items()
        },
        "curve": [
            {
                "number": point.number,
                "value": finite(point.value),
                "stderr": finite(point.stderr),
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


def comparison(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON."""
    return {
        **_ends(found.difference, found),
        "verdict": found.verdict,
        "superiority": found.superiority,
        "no_loss": found.no_worse_than(POINT),
        "bootstrap": _ends(found.bootstrap.value, found.bootstrap),
        "items": found.items,
    }


def _entry(entry: Entry, items: bool) -> dict[str, Any]:
    outcomes = {"search": entry.search, "holdout": entry.holdout}
    result: dict[str, Any] = {
        "name": entry.name,
        "role": entry.role,
        "number": entry.number,
        "recipe": entry.recipe,
        "intervals": {split: _ends(found.value, found) for split, found in entry.intervals.items()},
        "gaps": {split: comparison(found) for split, found in entry.gaps.items()},
    }
    result["choice"] = _ends(entry.choice.value, entry.choice) if entry.choice else None
    result["shrinkage"] = _ends(entry.shrinkage.value, entry.shrinkage) if entry.shrinkage else None
    result["broken"] = {split: dict(tasks) for split, tasks in entry.broken.items()}
    for split, outcome in outcomes.items():
        result[split] = outcome_to_json(outcome, items=items) if outcome else None
    return result


def _final(summary: Summary) -> dict[str, Any] | None:
    if summary.final is None:
        return None
    return {
        "winner": summary.final.winner,
        "trials": list(summary.final.numbers),
        "items": dict(summary.final.choice.items),
    }


def _ends(value: float, found: Interval | Comparison) -> dict[str, Any]:
    return {"value": finite(value), "low": finite(found.low), "high": finite(found.high)}
