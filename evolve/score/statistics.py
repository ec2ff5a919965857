"""Intervals for a model's objective, for the difference of two models, and for what a model keeps of another.

The intervals of the tasks (:mod:`evolve.score.intervals`) are combined by the method of variance estimates
recovery, which keeps their asymmetry. The lowest task gets an interval that holds whichever task is the
lowest, and ratios get the quantiles of draws (:mod:`evolve.score.draws`). The paired bootstrap stands beside
every difference.

They describe these checkpoints on new items of the same kind. They know nothing of the spread over seeds
of training or random masks, nor of a winner picked on the same items: :mod:`evolve.score.choice` does that.

References:
    Zou and Donner (2008), Stat. Med. 27:1693. Newcombe (1998), Stat. Med. 17:873.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from evolve.score.draws import DRAWS, ends, paired_draws
from evolve.score.intervals import CONFIDENCE, Interval, mean_interval, paired_interval, task_interval
from evolve.score.objective import Term, terms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from evolve.config.schema import ScoreConfig
    from evolve.score.objective import Parents, Tasks
    from evolve.types import TaskScore

    Array = npt.NDArray[np.float64]

RESAMPLES = 4000
_CHUNK = 2_000_000

Verdict = Literal["better", "worse", "cannot tell"]


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
    tasks: Tasks, config: ScoreConfig, parents: Parents | None = None, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return one model's objective with its interval, whatever it loses against the limit of ``retention``.

    Args:
        tasks: The model's scores, with items.
        config: The objective.
        parents: Scores of the parents on the same items; absent: the weighted mean of the metrics.
        confidence: Of the interval.
    """
    scale = terms(tasks, config, parents)
    if _lowest_counts(config, parents):
        return _lowest_interval(tasks, scale, confidence)
    parts = {name: task_interval(tasks[name], confidence=confidence) for name in scale}
    return _combine(scale, parts, offset=sum(term.weight * term.offset for term in scale.values()))


def compare(
    first: Tasks,
    second: Tasks,
    config: ScoreConfig,
    parents: Parents | None = None,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare two models item by item.

    Args:
        first: Scores of the model in question, with items.
        second: Scores of the model that it is held against.
        config: The objective.
        parents: Scores of the parents on the same items; absent: the weighted means are compared.
        seed: Seed of the bootstrap.
        confidence: Of both intervals.

    Raises:
        ValueError: A task has no item in common.
    """
    scale = terms(first, config, parents)
    pairs = {name: _paired(name, first[name], second[name]) for name in scale}
    if _lowest_counts(config, parents):
        whole, draws = _compare_lowest(pairs, scale, seed, confidence)
    else:
        parts = {name: paired_interval(a, b, confidence=confidence) for name, (a, b) in pairs.items()}
        whole = _combine(scale, parts)
        differences = {name: a - b for name, (a, b) in pairs.items()}
        draws = _bootstrap(differences, scale, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Comparison(
        difference=whole.value,
        low=whole.low,
        high=whole.high,
        superiority=float(np.mean(draws > 0) + np.mean(draws == 0) / 2),
        verdict=verdict_of(whole),
        bootstrap=Interval(whole.value, float(low), float(high)),
        items=sum(len(a) for a, _ in pairs.values()),
    )


def verdict_of(difference: Interval) -> Verdict:
    """Return what a difference says: ``better`` or ``worse`` where its interval leaves out 0."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "cannot tell"


def unpaired(first: Interval, second: Interval) -> Interval:
    """Return the difference of two estimates on different items (Newcombe's square-and-add)."""
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above)


def task_compare(first: TaskScore, second: TaskScore, *, confidence: float = CONFIDENCE) -> Interval:
    """Return how much better the first model is on one task, positive where it is better.

    Raises:
        ValueError: They have no item in common.
    """
    a, b = _paired(first.metric, first, second)
    found = paired_interval(a, b, confidence=confidence)
    return found if first.higher_is_better else Interval(-found.value, -found.high, -found.low)


def mean_of(parts: Sequence[Interval]) -> Interval:
    """Return the plain mean of independent estimates, each side combined from theirs (Zou and Donner 2008).

    Args:
        parts: At least one.
    """
    names = {str(place): part for place, part in enumerate(parts)}
    return _combine({name: Term(1.0, 0.0, 1 / len(parts)) for name in names}, names)


def kept(
    tasks: Tasks, parent: Tasks, config: ScoreConfig, *, confidence: float = CONFIDENCE
) -> Interval | None:
    """Return the share of a parent's skill that a model has kept: 1 is all of it.

    It is the sum of min(model, parent) - chance over the sum of parent - chance, weighted as in the
    objective: what a model gains on one task does not make up for what it has lost on another. A task counts
    where its chance is known and the parent is above it, the whole interval counted. None: no task counts.

    Args:
        tasks: The model's scores, with items.
        parent: The parent's.
        config: Tasks and weights.
        confidence: Of the interval.
    """
    ours, theirs = np.zeros(DRAWS + 1), np.zeros(DRAWS + 1)
    for index, entry in enumerate(config.counted):
        if entry.task not in tasks or entry.task not in parent or not entry.weight:
            continue
        found = _skills(tasks[entry.task], parent[entry.task], index)
        if found is not None:
            ours += entry.weight * np.minimum(*found)
            theirs += entry.weight * found[1]
    return _ratio(ours, theirs, confidence) if theirs[0] > 0 else None


def kept_on(task: TaskScore, parent: TaskScore, *, confidence: float = CONFIDENCE) -> Interval | None:
    """Return (model - chance) / (parent - chance) on one task, above 1 where the model is better, or None."""
    found = _skills(task, parent, 0)
    return None if found is None else _ratio(*found, confidence)


def _skills(task: TaskScore, parent: TaskScore, seed: int) -> tuple[Array, Array] | None:
    """Return what two models have above chance: their scores, then draws of them."""
    common = [key for key in task.items if key in parent.items]
    if not common or not has_skill(parent) or parent.chance is None:
        return None
    a, b = (np.array([one.items[key] for key in common]) for one in (task, parent))
    draws = paired_draws(a, b, np.random.default_rng([0, seed]))
    ours, theirs = (np.append(one.mean(), drawn) for one, drawn in zip((a, b), draws, strict=True))
    return ours - parent.chance, theirs - parent.chance


def _ratio(ours: Array, theirs: Array, confidence: float) -> Interval:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.nan_to_num(ours / theirs, nan=1.0)
    return ends(float(found[0]), found[1:], confidence)


def has_skill(task: TaskScore) -> bool:
    """Whether a model is above chance on a task, the whole interval counted; not where chance is unknown."""
    return task.chance is not None and task.higher_is_better and task_interval(task).low > task.chance


def _paired(name: str, first: TaskScore, second: TaskScore) -> tuple[Array, Array]:
    common = [key for key in first.items if key in second.items]
    if not common:
        raise ValueError(f"task {name!r}: the two models have no scored item in common")
    return np.array([first.items[key] for key in common]), np.array([second.items[key] for key in common])


def _combine(scale: Mapping[str, Term], parts: Mapping[str, Interval], *, offset: float = 0.0) -> Interval:
    """Combine independent estimates linearly, each side from the distances of the sides that push there."""
    value = offset
    below = above = 0.0
    for name, term in scale.items():
        if not term.weight:
            continue
        part, factor = parts[name], term.weight * term.factor
        value += factor * part.value
        down, up = part.value - part.low, part.high - part.value
        if factor < 0:
            down, up = up, down
        below += (factor * down) ** 2
        above += (factor * up) ** 2
    return Interval(value, value - math.sqrt(below), value + math.sqrt(above))


def _lowest_counts(config: ScoreConfig, parents: Parents | None) -> bool:
    return config.objective == "worst" and parents is not None


def _counting(scale: Mapping[str, Term]) -> list[str]:
    return [name for name, term in scale.items() if term.weight]


def _lowest_interval(tasks: Tasks, scale: Mapping[str, Term], confidence: float) -> Interval:
    """Return the lowest task with its interval, whichever task is truly the lowest.

    The lower end is the lowest of the tasks' lower ends: that of the truly lowest task is above the truth
    with the probability of one tail. Any of the upper ends may fall below it, so these have the level of
    Bonferroni.
    """
    names = _counting(scale)
    plain = [_scaled(scale[name], task_interval(tasks[name], confidence=confidence)) for name in names]
    level = 1 - (1 - confidence) / len(names)
    strict = [_scaled(scale[name], task_interval(tasks[name], confidence=level)) for name in names]
    value = min(part.value for part in plain)
    return Interval(value, min(part.low for part in plain), min(part.high for part in strict))


def _compare_lowest(
    pairs: Mapping[str, tuple[Array, Array]], scale: Mapping[str, Term], seed: int, confidence: float
) -> tuple[Interval, Array]:
    """Return the difference of two models' lowest tasks with its interval, and draws of it.

    The difference is min over i, max over j of (task i of the first - task j of the second), and as well max
    over j, min over i. So with an interval for each pair of tasks, the same of the lower ends is below the
    truth unless one of as many ends as there are tasks is wrong, and so for the upper ends: Bonferroni.
    """
    names = _counting(scale)
    level = 1 - (1 - confidence) / len(names)
    ours, theirs = (
        [_scaled(scale[name], _alone(pairs[name][side], level)) for name in names] for side in (0, 1)
    )
    low = np.empty((len(names), len(names)))
    high = np.empty_like(low)
    for i, name in enumerate(names):
        unit = scale[name]._replace(offset=0.0)
        for j in range(len(names)):
            found = unpaired(ours[i], theirs[j])
            if i == j:
                found = _scaled(unit, paired_interval(*pairs[name], confidence=level))
            low[i, j], high[i, j] = found.low, found.high
    value = min(part.value for part in ours) - min(part.value for part in theirs)
    whole = Interval(value, float(low.max(axis=1).min()), float(high.min(axis=0).max()))
    drawn = {
        name: paired_draws(*pairs[name], np.random.default_rng([seed, index]))
        for index, name in enumerate(names)
    }
    lowest = [
        np.min([scale[name].offset + scale[name].factor * drawn[name][side] for name in names], axis=0)
        for side in (0, 1)
    ]
    return whole, lowest[0] - lowest[1]


def _alone(values: Array, confidence: float) -> Interval:
    """Return one model's mean with its interval."""
    return mean_interval(values, float(values.mean()), confidence=confidence)


def _scaled(term: Term, found: Interval) -> Interval:
    """Return an interval of a metric on the scale of the objective."""
    value, one, other = (term.offset + term.factor * end for end in (found.value, found.low, found.high))
    return Interval(value, min(one, other), max(one, other))


def _bootstrap(differences: Mapping[str, Array], scale: Mapping[str, Term], seed: int) -> Array:
    """Return resampled differences of the objective, items drawn with replacement within each task."""
    total = np.zeros(RESAMPLES)
    for index, (name, values) in enumerate(differences.items()):
        rng = np.random.default_rng([seed, index])
        factor = scale[name].weight * scale[name].factor
        rows = max(1, _CHUNK // len(values))
        for start in range(0, RESAMPLES, rows):
            size = min(rows, RESAMPLES - start)
            drawn = rng.integers(0, len(values), (size, len(values)))
            total[start : start + size] += factor * values[drawn].mean(axis=1)
    return total
