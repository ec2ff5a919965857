"""Grid: every combination of the values of all genes, each once, in order."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import RunError, UserError
from evolve.search.declared import declared
from evolve.space.genes import on_grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from evolve.space.genes import Gene

Point: TypeAlias = tuple[int, ...]
"""For each gene the number of its value."""

_MOST = 100_000


class Grid:
    """Makes the sampler. Implements :class:`evolve.search.base.FiniteFactory`."""

    population: int | None = None

    def __call__(self, genes: Sequence[Gene], population: int, seed: int) -> BaseSampler:
        """Return the sampler for one ask.

        Args:
            genes: The whole space.
            population: Not used: what is asked depends on what was asked, not on values.
            seed: Not used: nothing is random.

        Raises:
            UserError: A gene is continuous, or there are too many points.
        """
        if (count := self.most(genes)) > _MOST:
            raise UserError(
                f"search.sampler: the grid has {count:,} points, more than {_MOST:,}: use larger steps or "
                "fewer ranges, or another sampler"
            )
        return declared(_sampler_class()(tuple(genes)), genes, complete=True)

    def most(self, genes: Sequence[Gene]) -> int:
        """Return the number of points."""
        return math.prod(_sizes(genes))

    def left(self, genes: Sequence[Gene], trials: Sequence[FrozenTrial]) -> int:
        """Return the number of points that were not asked."""
        return self.most(genes) - len(_asked(genes, trials))


make_sampler = Grid()


def _sizes(genes: Sequence[Gene]) -> list[int]:
    sizes = []
    for gene in genes:
        if gene.step is None and not gene.single:
            raise UserError(
                f"search.sampler: grid needs a step or choices in every range, and {gene.name} has none: "
                f"write {{low: {gene.low:g}, high: {gene.high:g}, step: ...}}"
            )
        sizes.append(1 if gene.step is None else round((gene.high - gene.low) / gene.step) + 1)
    return sizes


def _asked(genes: Sequence[Gene], trials: Sequence[FrozenTrial]) -> set[Point]:
    """Return the points of all trials, failed and running ones too, but for one whose asking goes on."""
    return {
        tuple(0 if g.step is None else round((trial.params[g.name] - g.low) / g.step) for g in genes)
        for trial in trials
        if all(gene.name in trial.params for gene in genes)
    }


def _points(genes: Sequence[Gene]) -> Iterator[Point]:
    return itertools.product(*(range(size) for size in _sizes(genes)))


def _value(gene: Gene, number: int) -> float | int:
    if gene.step is None:
        return gene.low
    return number if gene.integer else on_grid(gene.low, gene.step, number)


@functools.cache
def _sampler_class() -> Any:
    from optuna.samplers import BaseSampler

    class GridSampler(BaseSampler):
        def __init__(self, genes: tuple[Gene, ...]) -> None:
            self._genes = genes

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            before = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
            asked = _asked(self._genes, before)
            point = next((point for point in _points(self._genes) if point not in asked), None)
            if point is None:
                raise RunError(f"study {study.study_name}: every point of the grid was asked")
            values = {
                gene.name: _value(gene, number) for gene, number in zip(self._genes, point, strict=True)
            }
            return {name: values[name] for name in search_space}

        def sample_independent(self, study: Any, trial: Any, param_name: str, distribution: Any) -> Any:
            return distribution.low

    return GridSampler
