"""How many candidates make a generation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evolve.registry import SAMPLERS
from evolve.search.base import FiniteFactory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.config.schema import SearchConfig
    from evolve.space.genes import Gene

SMALLEST = 4


def population_of(search: SearchConfig, genes: int) -> int:
    """Return candidates per generation: what the config says, else what the sampler or CMA-ES wants."""
    factory = SAMPLERS.load(search.sampler)
    own = factory.population if isinstance(factory, FiniteFactory) else None
    return search.population or own or default_population(genes)


def most_trials(search: SearchConfig, genes: Sequence[Gene]) -> int | None:
    """Return after how many trials the search ends by itself, or None: it does not.

    Raises:
        UserError: The sampler cannot search this space.
    """
    factory = SAMPLERS.load(search.sampler)
    return factory.most(genes) if isinstance(factory, FiniteFactory) else None


def default_population(genes: int) -> int:
    """Return the population that CMA-ES uses by default: 4 + floor(3 ln n) for n genes, at least 4."""
    return SMALLEST + math.floor(3 * math.log(genes)) if genes > 1 else SMALLEST
