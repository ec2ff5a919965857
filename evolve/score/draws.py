"""Random draws of what two models would score on new items of the same kind, task by task, paired.

They serve where no closed interval is at hand, as for ratios. Where both models' items are 0 or 1, the shares
of the four outcomes are drawn from their Dirichlet posterior with 1/2 in each cell (Jeffreys' prior), which
keeps its spread where an outcome was never seen; a bootstrap has none there. All other items are resampled
with replacement (Efron 1979, Ann. Stat. 7:1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evolve.score.intervals import Interval, binary

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

DRAWS = 4000
_PRIOR = 0.5


def paired_draws(first: Array, second: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return draws of the means of two models over new items.

    Args:
        first: Metric of the first model, item by item.
        second: That of the second model on the same items.
        rng: Where the draws come from.
    """
    if binary(first) and binary(second):
        pairs = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        counts = [((first == a) & (second == b)).sum() for a, b in pairs]
        weights = rng.dirichlet(np.array(counts) + _PRIOR, DRAWS)
    else:
        pairs, repeated = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
        weights = rng.multinomial(len(first), repeated / len(first), DRAWS) / len(first)
    return weights @ pairs[:, 0], weights @ pairs[:, 1]


def ends(value: float, draws: Array, confidence: float) -> Interval:
    """Return the central interval of draws around an estimate."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))
