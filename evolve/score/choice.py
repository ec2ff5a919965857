"""The last choice: the best few of a search, scored on the holdout, and how the winner is reported.

A search score flatters the candidate that it has chosen, and so does a holdout score among several. So the
items of the holdout are parted: the winner is chosen on one half and reported on the other, where its
interval is that of a model that was named beforehand. On the half of the choice each of k candidates gets an
interval at the level 1 - (1 - confidence) / k (Bonferroni), so that all k hold at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evolve.score.intervals import CONFIDENCE
from evolve.score.metrics import standard_error
from evolve.score.objective import objective
from evolve.score.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.intervals import Interval
    from evolve.score.objective import Parents, Tasks
    from evolve.types import TaskScore


@dataclass(frozen=True)
class Choice:
    """Which of several candidates won.

    Attributes:
        winner: Its place among the candidates.
        values: Each candidate's objective on the half of the choice, losses beyond the limit counted.
        intervals: Each candidate's objective there, with intervals that hold all at once.
        items: Task to the number of items of that half.
    """

    winner: int
    values: tuple[float, ...]
    intervals: tuple[Interval, ...]
    items: Mapping[str, int]


def choose(
    candidates: Sequence[Tasks],
    config: ScoreConfig,
    parents: Parents | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> Choice:
    """Choose the winner on the first halves of the items.

    Args:
        candidates: Holdout scores of each, the best of the search first; of equals the earlier one wins.
        config: The objective.
        parents: The parents' holdout scores.
        confidence: That all the intervals hold.
    """
    first = [half(tasks, 0) for tasks in candidates]
    known = half_parents(parents, 0)
    values = tuple(objective(tasks, config, known)[0] for tasks in first)
    level = 1 - (1 - confidence) / len(candidates)
    return Choice(
        winner=max(range(len(values)), key=lambda place: (values[place], -place)),
        values=values,
        intervals=tuple(interval(tasks, config, known, confidence=level) for tasks in first),
        items={name: len(task.items) for name, task in first[0].items()},
    )


def can_choose(candidates: Sequence[Tasks]) -> bool:
    """Whether there is more than one candidate, and some task has items for two halves."""
    return len(candidates) > 1 and any(_parted(task) for task in candidates[0].values())


def half(tasks: Tasks, which: int) -> dict[str, TaskScore]:
    """Return scores on one half of the items: 0 for the choice, 1 for the report.

    A number of the whole model, such as that of a function, is the same on both.
    """
    return {name: halves(task)[which] if _parted(task) else task for name, task in tasks.items()}


def _parted(task: TaskScore) -> bool:
    return len(task.items) > 3


def half_parents(parents: Parents | None, which: int) -> dict[str, dict[str, TaskScore]] | None:
    """Return the parents' scores on one half of the items."""
    return None if parents is None else {name: half(tasks, which) for name, tasks in parents.items()}


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
