"""Random search: the yardstick that every other sampler has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.search.declared import declared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.samplers import BaseSampler

    from evolve.space.genes import Gene


def make_sampler(genes: Sequence[Gene], population: int, seed: int) -> BaseSampler:
    """Return a uniform sampler for one ask.

    Args:
        genes: The whole space.
        population: Not used: random search knows no generations.
        seed: Seed of this ask.
    """
    import optuna

    return declared(optuna.samplers.RandomSampler(seed=seed), genes, complete=False)
