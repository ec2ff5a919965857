"""CMA-ES: Optuna's CmaEsSampler over the declared space; with margin where a gene is discrete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import UserError
from evolve.search.declared import declared
from evolve.search.quiet import experimental

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.samplers import BaseSampler

    from evolve.space.genes import Gene


def make_sampler(genes: Sequence[Gene], population: int, seed: int) -> BaseSampler:
    """Return a CMA-ES sampler for one ask.

    Args:
        genes: The whole space.
        population: Candidates per generation; the same in every ask of a study.
        seed: Seed of this ask.

    Raises:
        UserError: Fewer than two genes can vary; a covariance needs two.
    """
    import optuna

    free = [gene for gene in genes if not gene.single]
    if len(free) < 2:
        raise UserError(
            f"search.sampler: cmaes needs at least two genes that can vary, and there "
            f"{'is one' if free else 'is none'}. Use sampler: tpe or random, or add a range."
        )
    with experimental():
        inner = optuna.samplers.CmaEsSampler(
            n_startup_trials=0,
            popsize=population,
            with_margin=any(gene.integer or gene.step is not None for gene in free),
            warn_independent_sampling=False,
            seed=seed,
        )
    return declared(inner, genes, complete=True)
