"""Intervals for a model's objective and for the difference of two models, over the items of the tasks.

A normal or bootstrap interval is far too short near 0 and 1: with all items right it has no width at all.
So a task whose items are 0 or 1 gets a score interval (Wilson for one model, Tango for the paired
difference), any other a t interval, and the intervals of the tasks are combined by the method of variance
estimates recovery, which keeps their asymmetry. The paired bootstrap stands beside it.

They describe these checkpoints on new items of the same kind. They know nothing of the spread over seeds
of training or random masks, nor of a winner picked on the same items.

References:
    Wilson (1927), J. Am. Stat. Assoc. 22:209. Tango (1998), Stat. Med. 17:891.
    Zou and Donner (2008), Stat. Med. 27:1693.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

from evolve.score.metrics import standard_error
from evolve.score.objective import shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from evolve.config.schema import ScoreConfig
    from evolve.types import TaskScore

    Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 4000
_CHUNK = 2_000_000

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two models' objectives on the same items.

    Attributes:
        difference: First minus second; positive where the first is better.
        low: Lower end of the interval.
        high: Upper end of the interval.
        superiority: Share of paired bootstrap draws in which the first is better, ties counted half.
        verdict: ``better`` or ``worse`` where the interval leaves out 0.
        bootstrap: The percentile interval of the paired bootstrap, stratified by task.
        items: Number of items compared.
    """

    difference: float
    low: float
    high: float
    superiority: float
    verdict: Verdict
    bootstrap: Interval
    items: int

    def no_worse_than(self, margin: float) -> bool:
        """Whether the first model is worse by less than ``margin``, the whole interval counted."""
        return self.low > -margin


def interval(
    tasks: Mapping[str, TaskScore], config: ScoreConfig, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return one model's objective with its interval."""
    factors = shares(tasks, config)
    parts = {name: task_interval(tasks[name], confidence=confidence) for name in factors}
    return _combine(factors, parts)


def task_interval(task: TaskScore, *, confidence: float = CONFIDENCE) -> Interval:
    """Return one task's metric with its interval: Wilson where items are 0 or 1, else Student's t."""
    values = np.array(list(task.items.values()))
    if len(values) == 0:
        return Interval(task.value, -math.inf, math.inf)
    if _binary(values):
        return wilson(int(values.sum()), len(values), confidence=confidence)
    return _student(values, task.value, confidence)


def compare(
    first: Mapping[str, TaskScore],
    second: Mapping[str, TaskScore],
    config: ScoreConfig,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare two models item by item.

    Args:
        first: Scores of the model in question, with items.
        second: Scores of the model that it is held against.
        config: The tasks and weights.
        seed: Seed of the bootstrap.
        confidence: Of both intervals.

    Raises:
        ValueError: A task has no item in common.
    """
    factors = shares(first, config)
    pairs = {name: _paired(name, first[name], second[name]) for name in factors}
    parts = {name: paired_interval(a, b, confidence=confidence) for name, (a, b) in pairs.items()}
    whole = _combine(factors, parts)
    draws = _bootstrap({name: a - b for name, (a, b) in pairs.items()}, factors, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    verdict: Verdict = "better" if whole.low > 0 else "worse" if whole.high < 0 else "cannot tell"
    return Comparison(
        difference=whole.value,
        low=whole.low,
        high=whole.high,
        superiority=float(np.mean(draws > 0) + np.mean(draws == 0) / 2),
        verdict=verdict,
        bootstrap=Interval(whole.value, float(low), float(high)),
        items=sum(len(a) for a, _ in pairs.values()),
    )


def paired_interval(first: Array, second: Array, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``first - second`` with its interval: Tango's where both are 0 or 1, else t."""
    if _binary(first) and _binary(second):
        gained = int(((first == 1) & (second == 0)).sum())
        lost = int(((first == 0) & (second == 1)).sum())
        return tango(gained, lost, len(first), confidence=confidence)
    return _student(first - second, float((first - second).mean()), confidence)


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


def halves(task: TaskScore) -> tuple[TaskScore, TaskScore]:
    """Return the task on two halves of its items, parted by the items' keys, the same for every model.

    A winner that is chosen on one half is reported on the other.
    """
    keys = sorted(task.items)
    return _restricted(task, keys[::2]), _restricted(task, keys[1::2])


def _restricted(task: TaskScore, keys: list[str]) -> TaskScore:
    items = {key: task.items[key] for key in keys}
    value = float(np.mean(list(items.values()))) if items else math.nan
    return replace(task, value=value, stderr=standard_error(list(items.values())), items=items)


def _paired(name: str, first: TaskScore, second: TaskScore) -> tuple[Array, Array]:
    common = [key for key in first.items if key in second.items]
    if not common:
        raise ValueError(f"task {name!r}: the two models have no scored item in common")
    return np.array([first.items[key] for key in common]), np.array([second.items[key] for key in common])


def _combine(factors: Mapping[str, float], parts: Mapping[str, Interval]) -> Interval:
    """Combine independent estimates linearly, each side from the distances of the sides that push there."""
    value = sum(factor * parts[name].value for name, factor in factors.items())
    below = above = 0.0
    for name, factor in factors.items():
        part = parts[name]
        if not factor:
            continue
        down, up = part.value - part.low, part.high - part.value
        if factor < 0:
            down, up = up, down
        below += (factor * down) ** 2
        above += (factor * up) ** 2
    return Interval(value, value - math.sqrt(below), value + math.sqrt(above))


def _bootstrap(differences: Mapping[str, Array], factors: Mapping[str, float], seed: int) -> Array:
    """Return resampled differences of the objective, items drawn with replacement within each task."""
    total = np.zeros(RESAMPLES)
    for index, (name, values) in enumerate(differences.items()):
        rng = np.random.default_rng([seed, index])
        rows = max(1, _CHUNK // len(values))
        for start in range(0, RESAMPLES, rows):
            size = min(rows, RESAMPLES - start)
            drawn = rng.integers(0, len(values), (size, len(values)))
            total[start : start + size] += factors[name] * values[drawn].mean(axis=1)
    return total


def _student(values: Array, centre: float, confidence: float) -> Interval:
    error = standard_error(values.tolist())
    if math.isnan(error):
        return Interval(centre, -math.inf, math.inf)
    half = _student_quantile(confidence, len(values) - 1) * error
    return Interval(centre, centre - half, centre + half)


def _student_quantile(confidence: float, freedom: int) -> float:
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


def _binary(values: Array) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())
