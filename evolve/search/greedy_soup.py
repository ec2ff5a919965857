"""Greedy soup: models one after the other, the best first, each kept if the score does not fall."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import RunError, UserError
from evolve.search.declared import declared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from evolve.space.genes import Gene

Members: TypeAlias = tuple[int, ...]
"""For each model 1 where it is in the soup, else 0."""


def next_soup(told: Mapping[Members, float | None], count: int) -> Members | None:
    """Return the soup to score next; None: all models were tried (Wortsman et al. 2022, arXiv:2203.05482).

    First each model alone. Then, from the best to the worst (of equals the first listed), each is added to
    the soup and stays if the score of the soup does not get worse. A model that could not be scored alone is
    left out, a soup that could not be scored is one that got worse.

    Args:
        told: Soups that were scored, with None for a failure.
        count: Number of models.
    """
    alone = [tuple(int(place == model) for place in range(count)) for model in range(count)]
    for soup in alone:
        if soup not in told:
            return soup
    scores = {model: score for model in range(count) if (score := told[alone[model]]) is not None}
    ranked = sorted(scores, key=lambda model: (-scores[model], model))
    if not ranked:
        return None
    soup, best = alone[ranked[0]], scores[ranked[0]]
    for model in ranked[1:]:
        tried = tuple(int(member or place == model) for place, member in enumerate(soup))
        if tried not in told:
            return tried
        score = told[tried]
        if score is not None and score >= best:
            soup, best = tried, score
    return None


class GreedySoup:
    """Makes the sampler. Implements :class:`evolve.search.base.FiniteFactory`.

    The space has a switch for each model: a weight ``{choices: [0, 1]}``.
    Before the first model alone the centre of the space is scored, which is the soup of all.
    """

    population: int | None = 1

    def __call__(self, genes: Sequence[Gene], population: int, seed: int) -> BaseSampler:
        """Return the sampler for one ask.

        Args:
            genes: The whole space.
            population: 1: what is asked depends on all that was told.
            seed: Not used: nothing is random.

        Raises:
            UserError: A gene is no switch, or the population is another one.
        """
        switches = _switches(genes)
        if population != 1:
            raise UserError(
                "search.population: greedy_soup scores one soup after the other: remove population"
            )
        return declared(_sampler_class()(switches), genes, complete=True)

    def most(self, genes: Sequence[Gene]) -> int:
        """Return how many trials there can be: the soup of all, each model alone, each but one added."""
        return 2 * len(_switches(genes))

    def left(self, genes: Sequence[Gene], trials: Sequence[FrozenTrial]) -> int:
        """Return 1, or 0 when all models were tried."""
        switches = _switches(genes)
        return int(next_soup(_told(switches, trials), len(switches)) is not None)


make_sampler = GreedySoup()


def _switches(genes: Sequence[Gene]) -> list[str]:
    free = [gene for gene in genes if not gene.single]
    for gene in free:
        # Not true and false: no weight is one, so they switch something else than a model.
        if gene.choices != (0, 1) or any(isinstance(value, bool) for value in gene.choices):
            raise UserError(
                f"search.sampler: greedy_soup decides which models are in, and {gene.name} is no switch: "
                "give each model the weight {choices: [0, 1]}, and other parameters a fixed value"
            )
    if not free:
        raise UserError("search.sampler: greedy_soup needs a weight {choices: [0, 1]} for each model")
    return [gene.name for gene in free]


def _told(switches: Sequence[str], trials: Sequence[FrozenTrial]) -> dict[Members, float | None]:
    told: dict[Members, float | None] = {}
    for trial in trials:
        if trial.state.is_finished() and all(name in trial.params for name in switches):
            soup = tuple(int(trial.params[name]) for name in switches)
            if told.get(soup) is None:
                told[soup] = trial.value if trial.state.name == "COMPLETE" else None
    return told


@functools.cache
def _sampler_class() -> Any:
    from optuna.samplers import BaseSampler

    class GreedySampler(BaseSampler):
        def __init__(self, switches: Sequence[str]) -> None:
            self._switches = switches

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            told = _told(self._switches, study.get_trials(deepcopy=False))
            soup = next_soup(told, len(self._switches))
            if soup is None:
                raise RunError(f"study {study.study_name}: all models were tried, there is no soup left")
            return dict(zip(self._switches, soup, strict=True))

        def sample_independent(self, study: Any, trial: Any, param_name: str, distribution: Any) -> Any:
            return distribution.low

    return GreedySampler
