"""How many candidates make a generation."""

from __future__ import annotations

import math

SMALLEST = 4


def default_population(genes: int) -> int:
    """Return the population that CMA-ES uses by default: 4 + floor(3 ln n) for n genes, at least 4."""
    return SMALLEST + math.floor(3 * math.log(genes)) if genes > 1 else SMALLEST
