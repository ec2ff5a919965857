"""What is known of candidates item by item, and the order in which items are asked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evolve.errors import RunError
from evolve.score.items import rank
from evolve.score.metrics import standard_error
from evolve.score.objective import objective, shares
from evolve.score.racing import Strata
from evolve.types import Scored, TaskScore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from evolve.config.schema import ScoreConfig
    from evolve.types import Items

    Array = npt.NDArray[np.float64]

_FAVOUR = 3.0
"""How much denser items that separate the parents stand at the front of the discriminative order."""
_SMALLEST = 8


class Table:
    """Values of items, by recipe.

    Args:
        parents: Outcomes of the baselines on all items: they say which items there are.
        config: Tasks and weights.
        seed: Seed of the order of the items.
        discriminative: Whether items on which the baselines differ are asked more densely at the front.

    Raises:
        RunError: The baselines were not scored on the same items.
    """

    def __init__(
        self, parents: Sequence[Scored], config: ScoreConfig, *, seed: int, discriminative: bool
    ) -> None:
        self._config = config
        self._shape = dict(parents[0].tasks)
        for other in parents:
            if any(other.tasks[name].items.keys() != task.items.keys() for name, task in self._shape.items()):
                raise RunError("racing needs a score of every item, and a task leaves some out")
        spread = _spread(parents, self._shape) if discriminative else None
        self.items, self.strata = _ordered(self._shape, shares(self._shape, config), seed, spread)
        self._place = {item: place for place, item in enumerate(self.items)}
        self.parents = np.stack([self._row(parent.tasks) for parent in parents])
        self._rows: dict[str, Array] = {}
        self._seconds: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def add(self, recipe: str, tasks: Mapping[str, TaskScore], seconds: Mapping[str, float]) -> None:
        """Learn the scores of some or all items of a recipe, and what they cost."""
        spent = self._seconds.setdefault(recipe, {})
        for phase, value in seconds.items():
            spent[phase] = spent.get(phase, 0.0) + value
        row = self._row(tasks)
        if recipe in self._rows:
            row = np.where(np.isnan(row), self._rows[recipe], row)
        self._rows[recipe] = row

    def values(self, recipe: str, count: int | None = None) -> Array:
        """Return the values of the first ``count`` items; NaN where an item was not asked."""
        row = self._rows.get(recipe)
        whole = np.full(len(self), math.nan) if row is None else row
        return whole[:count]

    def known(self, recipe: str) -> int:
        """Return how many items from the first on are known of a recipe."""
        unknown = np.isnan(self.values(recipe))
        return int(unknown.argmax()) if unknown.any() else len(self)

    def missing(self, recipe: str, count: int) -> Items:
        """Return which of the first ``count`` items are not known of a recipe."""
        found: dict[str, list[str]] = {}
        for place in np.flatnonzero(np.isnan(self.values(recipe, count))):
            task, key = self.items[place]
            found.setdefault(task, []).append(key)
        return tuple((task, tuple(found[task])) for task in self._shape if task in found)

    def whole(self, recipe: str) -> Scored | None:
        """Return the outcome on all items, put together from the parts, or None: some are missing."""
        row = self.values(recipe)
        if np.isnan(row).any():
            return None
        tasks = {}
        for name, task in self._shape.items():
            items = {key: float(row[self._place[name, key]]) for key in task.items}
            value = math.fsum(items.values()) / len(items)
            error = standard_error(list(items.values()))
            tasks[name] = TaskScore(task.metric, value, error, task.higher_is_better, items, task.chance)
        return Scored(*objective(tasks, self._config), tasks, self._seconds.get(recipe, {}))

    def _row(self, tasks: Mapping[str, TaskScore]) -> Array:
        row = np.full(len(self.items), math.nan)
        for name, task in tasks.items():
            for key, value in task.items.items():
                row[self._place[name, key]] = value
        return row


def _spread(parents: Sequence[Scored], shape: Mapping[str, TaskScore]) -> dict[tuple[str, str], float]:
    """Return item to how much the baselines differ on it."""
    return {
        (name, key): float(np.std([parent.tasks[name].items[key] for parent in parents]))
        for name, task in shape.items()
        for key in task.items
    }


def _ordered(
    shape: Mapping[str, TaskScore],
    factors: Mapping[str, float],
    seed: int,
    spread: Mapping[tuple[str, str], float] | None,
) -> tuple[list[tuple[str, str]], Strata]:
    """Interleave the strata, each in a seeded order, so that every prefix has its share of each.

    A task that counts nothing comes last. The separating items of a task are a stratum of their own, asked
    more densely and counted less each, so that an estimate from any prefix stays unbiased.
    """
    placed: list[tuple[float, str, tuple[str, str], int]] = []
    share: list[float] = []
    for name, task in shape.items():
        late = 0.0 if factors[name] else 2.0
        groups = _groups(name, task, spread)
        for density, keys in groups:
            stratum = len(share)
            share.append(factors[name] * len(keys) / len(task.items))
            keys = sorted(keys, key=lambda key: rank(key, seed))
            for position, key in enumerate(keys):
                at = late + (position + 0.5) / len(keys) / density
                placed.append((at, rank(key, seed), (name, key), stratum))
    placed.sort()
    return [item for _, _, item, _ in placed], Strata(
        np.array(share), np.array([stratum for *_, stratum in placed], dtype=np.int64)
    )


def _groups(
    name: str, task: TaskScore, spread: Mapping[tuple[str, str], float] | None
) -> list[tuple[float, list[str]]]:
    """Return the strata of a task with their densities: separating items and others, where both are many."""
    keys = list(task.items)
    if spread is None:
        return [(1.0, keys)]
    middle = float(np.mean([spread[name, key] for key in keys]))
    apart = [key for key in keys if spread[name, key] > middle]
    alike = [key for key in keys if spread[name, key] <= middle]
    if min(len(apart), len(alike)) < _SMALLEST:
        return [(1.0, keys)]
    return [(_FAVOUR, apart), (1.0, alike)]
