"""The one number that the search raises."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.types import TaskScore


def shares(tasks: Mapping[str, TaskScore], config: ScoreConfig) -> dict[str, float]:
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


def objective(tasks: Mapping[str, TaskScore], config: ScoreConfig) -> tuple[float, float]:
    """Return the weighted mean of the metrics, each with its direction, and its standard error over items.

    Metrics keep their own unit: an accuracy of 0.6 and 1.4 bits per byte at equal weights give
    (0.6 - 1.4) / 2. The items of different tasks count as independent. The error is NaN where a task with a
    weight has none.

    Raises:
        CandidateError: A metric is NaN or infinite, or missing.
    """
    factors = shares(tasks, config)
    value = 0.0
    variance = 0.0
    for name, factor in factors.items():
        score = tasks[name]
        if not math.isfinite(score.value):
            raise CandidateError("non_finite", f"task {name!r}: {score.metric} is {score.value}")
        value += factor * score.value
        if factor:
            variance += (factor * score.stderr) ** 2
    return value, math.sqrt(variance)
