"""The one number that the search raises, and the limit on what a candidate may lose.

A candidate's tasks are all that an engine says of it. What they are worth may depend on the parents' scores,
so the value is computed where those are known, from the tasks alone, the same at every time.

On the common scale a task is ``1 + (score - best parent) / (best parent - worst parent)``: the worst parent
is 0, the best is 1. Where the parents are tied, or closer than the items can tell apart, the distance is
half the width of the best parent's 95 % interval instead, so that noise is not blown up; tied parents are
then all at 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from evolve.errors import CandidateError
from evolve.score.intervals import task_interval
from evolve.types import Failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.types import Outcome, TaskScore

    Tasks: TypeAlias = Mapping[str, TaskScore]
    Parents: TypeAlias = Mapping[str, Mapping[str, TaskScore]]

_MARGIN = 1e-9
"""Relative distance of the best candidate that breaks the limit from the worst that could keep it."""


class Term(NamedTuple):
    """What a task is on the scale of the objective: ``offset + factor * metric``, larger is better."""

    factor: float
    offset: float
    weight: float


def needs_parents(config: ScoreConfig) -> bool:
    """Whether a value can be told only when the parents are scored."""
    return config.objective != "weighted" or config.retention is not None


def shares(tasks: Tasks, config: ScoreConfig) -> dict[str, float]:
    """Return what each task's metric is multiplied by: its weight over the sum of |weights|, with direction.

    The factor of a metric that is better when lower is negated, so that the objective is always to be raised.
    """
    total = sum(abs(entry.weight) for entry in config.counted)
    if total == 0:
        raise CandidateError("score", "every weight is 0: the objective is undefined")
    missing = [entry.task for entry in config.counted if entry.task not in tasks]
    if missing:
        raise CandidateError("score", f"no score for {', '.join(missing)}")
    return {
        entry.task: (1 if tasks[entry.task].higher_is_better else -1) * entry.weight / total
        for entry in config.counted
    }


def terms(tasks: Tasks, config: ScoreConfig, parents: Parents | None = None) -> dict[str, Term]:
    """Return each task on the scale of the objective, with its share of the weights.

    Args:
        tasks: The candidate's scores; only their directions are used.
        config: The objective.
        parents: Model's name to its scores on the same items. Without it tasks keep their own unit, and the
            objective is the weighted mean.

    Raises:
        CandidateError: A task is missing.
    """
    found = {}
    for name, share in shares(tasks, config).items():
        sign = 1.0 if tasks[name].higher_is_better else -1.0
        if config.objective == "weighted" or parents is None:
            found[name] = Term(sign, 0.0, abs(share))
            continue
        best, distance = _yardstick([scores[name] for scores in parents.values()], sign)
        found[name] = Term(sign / distance, 1.0 - best / distance, abs(share))
    return found


def objective(tasks: Tasks, config: ScoreConfig, parents: Parents | None = None) -> tuple[float, float]:
    """Return the objective, to be raised, and its standard error over items.

    The items of different tasks count as independent, and the parents' scores as known. The error is NaN
    where a task with a weight has none. A candidate below the limit of ``retention`` gets the least value
    that one above it can have, minus its shortfalls: a finite value, below that of all who keep the limit.

    Args:
        tasks: The candidate's scores.
        config: The objective.
        parents: Model's name to its scores on the same items. Without it the value is the weighted mean of
            the metrics, whatever the config says: what an evaluator reports before the parents are known.

    Raises:
        CandidateError: A metric is NaN or infinite, or missing; the message names the task.
    """
    scale = terms(tasks, config, parents)
    for name in scale:
        if not math.isfinite(tasks[name].value):
            raise CandidateError("non_finite", f"task {name!r}: {tasks[name].metric} is {tasks[name].value}")
    value, stderr = _combined(tasks, config, scale, parents)
    missed = sum(shortfalls(tasks, config, parents).values())
    if missed > 0 and config.retention is not None and parents is not None:
        limit = _limit(parents[config.retention.model], config.retention.loss)
        floor, _ = _combined(limit, config, scale, parents)
        value = floor - _MARGIN * max(1.0, abs(floor)) - missed
    return value, stderr


def valued(outcome: Outcome, config: ScoreConfig | None, parents: Parents | None) -> Outcome:
    """Return an outcome with the value that its tasks have beside those of the parents.

    It stays as it is where its value needs no parents, or they are not known yet.
    """
    if config is None or parents is None or not needs_parents(config) or isinstance(outcome, Failed):
        return outcome
    value, stderr = objective(outcome.tasks, config, parents)
    return replace(outcome, value=value, stderr=stderr)


def shortfalls(tasks: Tasks, config: ScoreConfig, parents: Parents | None) -> dict[str, float]:
    """Return the tasks on which a candidate loses more than ``retention`` allows, each with the excess."""
    if config.retention is None or parents is None:
        return {}
    found = {}
    for name, limit in _limit(parents[config.retention.model], config.retention.loss).items():
        if name in tasks:
            sign = 1.0 if limit.higher_is_better else -1.0
            missed = sign * (limit.value - tasks[name].value)
            # A score that is equal to the limit but for rounding keeps it.
            if missed > 1e-12 * max(1.0, abs(limit.value)):
                found[name] = missed
    return found


def _limit(tasks: Tasks, loss: float) -> dict[str, TaskScore]:
    return {
        name: replace(task, value=task.value - loss if task.higher_is_better else task.value + loss)
        for name, task in tasks.items()
    }


def _combined(
    tasks: Tasks, config: ScoreConfig, scale: Mapping[str, Term], parents: Parents | None
) -> tuple[float, float]:
    scores = {name: term.offset + term.factor * tasks[name].value for name, term in scale.items()}
    errors = {name: abs(term.factor) * tasks[name].stderr for name, term in scale.items()}
    counting = [name for name, term in scale.items() if term.weight]
    if config.objective == "worst" and parents is not None:
        lowest = min(counting, key=lambda name: scores[name])
        return scores[lowest], errors[lowest]
    value = sum(scale[name].weight * scores[name] for name in counting)
    return value, math.sqrt(sum((scale[name].weight * errors[name]) ** 2 for name in counting))


def _yardstick(scores: Iterable[TaskScore], sign: float) -> tuple[float, float]:
    """Return the best parent's score with its direction, and the length of the unit below it."""
    ordered = sorted(scores, key=lambda score: sign * score.value)
    best, distance = ordered[-1], sign * (ordered[-1].value - ordered[0].value)
    ends = task_interval(best)
    width = (ends.high - ends.low) / 2
    if math.isfinite(width):
        distance = max(distance, width)
    return sign * best.value, distance if distance > 0 else 1.0
