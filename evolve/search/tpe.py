"""TPE: Optuna's multivariate TPESampler over the declared space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.search.declared import declared
from evolve.search.quiet import experimental

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.samplers import BaseSampler

    from evolve.space.genes import Gene


def make_sampler(genes: Sequence[Gene], population: int, seed: int) -> BaseSampler:
    """Return a TPE sampler for one ask. The first 10 values come from random trials.

    Args:
        genes: The whole space.
        population: Not used: TPE knows no generations. Trials that run count as bad ones, so that a round
            does not ask for one point again and again.
        seed: Seed of this ask.
    """
    import optuna

    with experimental():
        inner = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
    return declared(inner, genes, complete=False)
