"""From lm-eval's samples to one number per item, whose mean is the metric and whose spread its error.

For a plain mean the numbers are the items' own scores. Any other aggregation (a ratio of sums such as bits
per byte, a perplexity, an F1) gets influence values, closed where lm-eval's aggregation is known and by the
jackknife elsewhere, centred on the metric. So every paired comparison works on items, whatever the metric.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

JACKKNIFE_LIMIT = 5000


def item_values(name: str, metric: str, values: Sequence[Any], aggregate: Callable[..., Any]) -> list[float]:
    """Return one number per item, in the order of ``values``, with the aggregate as their mean.

    Args:
        name: The task, for messages.
        metric: The metric, for messages.
        values: What the task's ``process_results`` gave for each item: a number, or what ``aggregate`` takes.
        aggregate: lm-eval's aggregation of the metric.

    Raises:
        CandidateError: A value is NaN or infinite, or the aggregation fails.
    """
    from lm_eval.api import metrics as known

    try:
        if aggregate is known.mean:
            found = np.array([float(value) for value in values])
        elif aggregate is known.perplexity:
            found = _exponential(np.array([float(value) for value in values]))
        elif aggregate is known.weighted_perplexity:
            found = _exponential(_ratio(values))
        elif aggregate is known.bits_per_byte:
            found = -_ratio(values) / math.log(2)
        else:
            found = _jackknife(values, aggregate)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise CandidateError("score", f"task {name!r}: {metric} cannot be computed: {error}") from error
    if not np.isfinite(found).all():
        count = int((~np.isfinite(found)).sum())
        raise CandidateError(
            "non_finite", f"task {name!r}: {metric} is not finite on {count} of {len(found)} items"
        )
    return [float(value) for value in found]


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of ``values``; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


_RIGHT_OR_WRONG = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"})


def chance_of(task: Any, metric: str, docs: Sequence[Any]) -> float | None:
    """Return the share of items that guessing gets right; None where that is no question of right or wrong.

    Args:
        task: The lm-eval task.
        metric: Name of the metric, without the filter.
        docs: The items.
    """
    if metric not in _RIGHT_OR_WRONG or not docs:
        return None
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    choices = [task.doc_to_choice(doc) for doc in docs]
    return math.fsum(1 / len(options) for options in choices) / len(docs)


def _ratio(pairs: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Influence values of sum(a) / sum(b): their mean is the ratio."""
    table = np.array(pairs, dtype=np.float64)
    top, bottom = table[:, 0], table[:, 1]
    ratio = top.sum() / bottom.sum()
    return np.asarray(ratio + (top - ratio * bottom) / bottom.mean())


def _exponential(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Influence values of exp(-mean(logs)): their mean is the perplexity."""
    centre = logs.mean()
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.exp(-centre) * (1 - (logs - centre)))


def _jackknife(values: Sequence[Any], aggregate: Callable[..., Any]) -> npt.NDArray[np.float64]:
    count = len(values)
    whole = float(aggregate(list(values)))
    if count > JACKKNIFE_LIMIT:
        raise ValueError(f"{count} items are too many for a metric without a mean: at most {JACKKNIFE_LIMIT}")
    if count < 2:
        return np.full(count, whole)
    rest = [float(aggregate([*values[:i], *values[i + 1 :]])) for i in range(count)]
    pseudo = count * whole - (count - 1) * np.array(rest)
    return np.asarray(pseudo - pseudo.mean() + whole)
