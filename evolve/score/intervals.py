"""Intervals for a mean over items, and for the mean of paired differences.

A normal or bootstrap interval is far too short near 0 and 1: with all items right it has no width at all.
So items that are 0 or 1 get a score interval (Wilson for one model, Tango for the paired difference), all
others Student's t interval.

References:
    Wilson (1927), J. Am. Stat. Assoc. 22:209. Tango (1998), Stat. Med. 17:891.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from evolve.score.metrics import standard_error

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from evolve.types import TaskScore

    Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def task_interval(task: TaskScore, *, confidence: float = CONFIDENCE) -> Interval:
    """Return one task's metric with its interval: Wilson where items are 0 or 1, else Student's t."""
    return mean_interval(np.array(list(task.items.values())), task.value, confidence=confidence)


def mean_interval(values: Array, centre: float, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``values``, known to be ``centre``, with its interval as :func:`task_interval`."""
    if len(values) == 0:
        return Interval(centre, -math.inf, math.inf)
    if binary(values):
        return wilson(int(values.sum()), len(values), confidence=confidence)
    return _student(values, centre, confidence)


def paired_interval(first: Array, second: Array, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``first - second`` with its interval: Tango's where both are 0 or 1, else t."""
    if binary(first) and binary(second):
        gained = int(((first == 1) & (second == 0)).sum())
        lost = int(((first == 0) & (second == 1)).sum())
        return tango(gained, lost, len(first), confidence=confidence)
    return _student(first - second, float((first - second).mean()), confidence)


def welch(first: Array, second: Array, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the difference of two means of independent samples, with Welch's interval.

    Each sample may have a spread of its own (Welch 1947, Biometrika 34:28). With fewer than two values on a
    side there is no interval.

    Args:
        first: At least one value.
        second: At least one value; it is subtracted.
        confidence: Of the interval.
    """
    value = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Interval(value, -math.inf, math.inf)
    parts = [float(side.var(ddof=1)) / len(side) for side in (first, second)]
    if not sum(parts):
        return Interval(value, value, value)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True)
    )
    half = student_quantile(confidence, freedom) * math.sqrt(sum(parts))
    return Interval(value, value - half, value + half)


def wilson(successes: int, count: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return a proportion with Wilson's score interval."""
    z = _normal(confidence)
    share = successes / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def tango(gained: int, lost: int, count: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the difference of two paired proportions with Tango's score interval.

    Args:
        gained: Items that only the first model gets right.
        lost: Items that only the second gets right.
        count: All items.
        confidence: Of the interval.
    """
    z = _normal(confidence)
    difference = (gained - lost) / count

    def score(delta: float) -> float:
        slope = 2 * count - gained + lost
        b = -gained - lost + slope * delta
        c = -lost * delta * (1 - delta)
        rate = (math.sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)
        variance = count * (2 * rate + delta * (1 - delta))
        distance = gained - lost - count * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    low = difference if difference <= -1 else _solve(lambda delta: score(delta) > z, -1.0, difference)
    high = difference if difference >= 1 else _solve(lambda delta: score(delta) > -z, difference, 1.0)
    return Interval(difference, low, high)


def _student(values: Array, centre: float, confidence: float) -> Interval:
    error = standard_error(values.tolist())
    if math.isnan(error):
        return Interval(centre, -math.inf, math.inf)
    half = student_quantile(confidence, len(values) - 1) * error
    return Interval(centre, centre - half, centre + half)


@functools.cache
def student_quantile(confidence: float, freedom: float) -> float:
    """Return the two-sided quantile of Student's t by bisection of its distribution function."""
    z = _normal(confidence)
    if freedom > 200:
        return z + (z**3 + z) / (4 * freedom)
    grid = np.linspace(0.0, 1.0, 2001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def inside(t: float) -> float:
        # P(|T| < t) as an integral over the angle atan(t / sqrt(freedom)), where it is smooth.
        angle = math.atan(t / math.sqrt(freedom))
        heights = np.cos(grid * angle) ** (freedom - 1)
        return float(2 * scale * angle * np.trapezoid(heights, grid))

    return _solve(lambda t: inside(t) < confidence, 0.0, 1e3)


def _solve(before: Callable[[float], bool], low: float, high: float) -> float:
    """Return the point in between where ``before`` stops to hold, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if before(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _normal(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def binary(values: Array) -> bool:
    """Whether all items are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())
