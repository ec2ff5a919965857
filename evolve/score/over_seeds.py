"""A recipe over several seeds: what of its score belongs to one draw, and how sure its mean is.

An interval over items says how a checkpoint does on new items; built again with another seed, the recipe is
another checkpoint. The estimate is the mean of the seeds' objectives. The items, averaged over the seeds,
give the width over items, Student's t over the seeds' objectives gives that over draws. Both are joined by
square-and-add (method of variance estimates recovery). The noise of an item in a draw is in both, so the
result is rather too wide.

References:
    Zou and Donner (2008), Stat. Med. 27:1693.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evolve.score.intervals import CONFIDENCE, Interval, student_quantile
from evolve.score.metrics import standard_error
from evolve.score.statistics import compare, interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.objective import Parents, Tasks
    from evolve.types import TaskScore


@dataclass(frozen=True)
class OverSeeds:
    """A recipe's objective over seeds.

    Attributes:
        values: The objective of each seed.
        spread: Their standard deviation; NaN with one seed.
        mean: Their mean, with an interval over items and seeds.
    """

    values: tuple[float, ...]
    spread: float
    mean: Interval


def over_seeds(
    draws: Sequence[Tasks],
    config: ScoreConfig,
    parents: Parents | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> OverSeeds:
    """Return the objective of a recipe that was built with several seeds.

    Args:
        draws: Each seed's scores on the same items; at least one.
        config: The objective.
        parents: The parents' scores on these items.
        confidence: Of the interval, which with one seed is that over items.
    """
    values = _values(draws, config, parents)
    found = interval(averaged(draws), config, parents, confidence=confidence)
    mean = float(np.mean(values))
    return OverSeeds(values, _deviation(values), _widened(found, mean, [_reach(values, confidence)]))


def compare_over_seeds(
    first: Sequence[Tasks],
    second: Sequence[Tasks],
    config: ScoreConfig,
    parents: Parents | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return how much better a recipe is than another on the same items, over the seeds of both.

    Args:
        first: Each seed's scores of the recipe in question; at least one.
        second: Each seed's scores of the other one; a single one has no spread over seeds.
        config: The objective.
        parents: The parents' scores on these items.
        confidence: Of the interval.

    Raises:
        ValueError: A task has no item in common.
    """
    found = compare(averaged(first), averaged(second), config, parents, confidence=confidence)
    reach = [_reach(_values(draws, config, parents), confidence) for draws in (first, second)]
    centre = found.difference + _bent(first, config, parents) - _bent(second, config, parents)
    return _widened(Interval(found.difference, found.low, found.high), centre, reach)


def averaged(draws: Sequence[Tasks]) -> dict[str, TaskScore]:
    """Return the mean over seeds of each item that all of them have.

    A number of the whole model, without items, is averaged itself.
    """
    found = {}
    for name, task in draws[0].items():
        others = [tasks[name] for tasks in draws]
        keys = [key for key in task.items if all(key in other.items for other in others)]
        items = {key: float(np.mean([other.items[key] for other in others])) for key in keys}
        same = all(len(other.items) == len(items) for other in others)
        value = float(np.mean([other.value for other in others] if same else list(items.values())))
        error = standard_error(list(items.values())) if items else math.nan
        found[name] = replace(task, value=value, stderr=error, items=items)
    return found


def _values(draws: Sequence[Tasks], config: ScoreConfig, parents: Parents | None) -> tuple[float, ...]:
    return tuple(interval(tasks, config, parents).value for tasks in draws)


def _bent(draws: Sequence[Tasks], config: ScoreConfig, parents: Parents | None) -> float:
    """Return the mean of the objectives minus the objective of the mean: not 0 for the lowest task."""
    return float(np.mean(_values(draws, config, parents))) - interval(averaged(draws), config, parents).value


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _reach(values: Sequence[float], confidence: float) -> float:
    """Return the half width of Student's interval of the mean; 0 where nobody knows the spread."""
    if len(values) < 2 or len(set(values)) == 1:
        return 0.0
    return student_quantile(confidence, len(values) - 1) * _deviation(values) / math.sqrt(len(values))


def _widened(found: Interval, centre: float, reaches: Sequence[float]) -> Interval:
    """Return an interval as wide as ``found`` and ``reaches`` together, around ``centre``."""
    below = math.hypot(found.value - found.low, *reaches)
    above = math.hypot(found.high - found.value, *reaches)
    return Interval(centre, centre - below, centre + above)
