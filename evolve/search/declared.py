"""Genes as Optuna sees them, and a sampler that is told its space instead of guessing it.

Optuna's samplers take the space from trials that are complete: a first generation that is asked as a batch
would be random and lost to CMA-ES. They also draw some values one by one, so that a trial whose asking was
interrupted would get other values. Here a trial's values are always drawn together.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from evolve.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from evolve.space.genes import Gene


def distribution(gene: Gene) -> BaseDistribution:
    """Return Optuna's distribution of a gene: whole numbers for choices, floats otherwise."""
    from optuna.distributions import FloatDistribution, IntDistribution

    if gene.integer:
        return IntDistribution(int(gene.low), int(gene.high))
    return FloatDistribution(gene.low, gene.high, log=gene.log, step=gene.step)


def suggest(trial: Trial, gene: Gene) -> float:
    """Suggest a gene's value; one that the trial has already stays."""
    if gene.integer:
        return float(trial.suggest_int(gene.name, int(gene.low), int(gene.high)))
    return float(trial.suggest_float(gene.name, gene.low, gene.high, log=gene.log, step=gene.step))


def declared(inner: BaseSampler, genes: Sequence[Gene], *, complete: bool) -> BaseSampler:
    """Return a sampler that draws all genes of a trial together.

    Args:
        inner: The sampler that decides.
        genes: The whole space; genes with one value are left to Optuna.
        complete: The inner sampler always draws all genes itself; when it does not, that is an error and
            not a reason to draw at random.
    """
    space = {gene.name: distribution(gene) for gene in genes if not gene.single}
    return _sampler_class()(inner, space, complete)


@functools.cache
def _sampler_class() -> Any:
    from optuna.samplers import BaseSampler

    class DeclaredSampler(BaseSampler):
        def __init__(self, inner: BaseSampler, space: dict[str, BaseDistribution], complete: bool) -> None:
            self._inner = inner
            self._space = space
            self._complete = complete

        def infer_relative_search_space(
            self, study: Study, trial: FrozenTrial
        ) -> dict[str, BaseDistribution]:
            return self._space

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            # An enqueued trial has its values, and is no sample of a generation.
            if "fixed_params" in trial.system_attrs:
                return {}
            values: dict[str, Any] = self._inner.sample_relative(study, trial, search_space)
            missing = [name for name in search_space if name not in values]
            if missing and self._complete:
                raise RunError(
                    f"study {study.study_name}: the optimizer in it has other genes than the config. "
                    "A changed space needs a new study."
                )
            for name in missing:
                values[name] = self._inner.sample_independent(study, trial, name, search_space[name])
            return values

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            self._inner.before_trial(study, trial)

        def after_trial(
            self, study: Study, trial: FrozenTrial, state: Any, values: Sequence[float] | None
        ) -> None:
            self._inner.after_trial(study, trial, state, values)

        def reseed_rng(self) -> None:
            self._inner.reseed_rng()

    return DeclaredSampler
