"""In which order documents are seen: a curriculum, from easy to hard, strictly or at a pace.

Platanios et al. 2019, Competence-based curriculum learning, arXiv:1903.09848: a document may be drawn once
the learner's competence, which grows with the square root of the time, reaches its rank. Here every document
is drawn exactly once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def competence(progress: float, pacing: float) -> float:
    """Return which share of the documents, the easiest ones, may be drawn: ``sqrt(t (1 - c^2) + c^2)``.

    Args:
        progress: t, the share of the documents that were seen, 0 to 1.
        pacing: c, the share at the start, above 0 to 1. At 1 all may be drawn from the start.
    """
    return min(1.0, math.sqrt(progress * (1 - pacing**2) + pacing**2))


def curriculum(
    difficulty: Sequence[float] | NDArray[np.float64],
    *,
    pacing: float | None = None,
    reverse: bool = False,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the order in which documents are seen, int64, (n,).

    Args:
        difficulty: Of each document, in the order in which they would be seen without a curriculum; finite.
        pacing: The share of the easiest documents that may be drawn at the start; 1: the order of the
            documents as it is; None: strictly by difficulty.
        reverse: From hard to easy.
        seed: Decides the draws.
    """
    values = np.asarray(difficulty, dtype=np.float64)
    count = len(values)
    if pacing is not None and pacing >= 1:
        return np.arange(count)
    # Equal ones keep their order, in both directions.
    ranked = np.argsort(-values if reverse else values, kind="stable")
    if pacing is None:
        return ranked
    raw = np.random.Philox(key=seed).random_raw(count)
    open_ones: list[int] = []
    drawn = np.empty(count, dtype=np.int64)
    for place in range(count):
        # At least one more than were drawn: competence is never below progress.
        allowed = max(place + 1, math.ceil(competence(place / count, pacing) * count))
        open_ones += ranked[len(open_ones) + place : allowed].tolist()
        pick = int(raw[place]) % len(open_ones)
        open_ones[pick], open_ones[-1] = open_ones[-1], open_ones[pick]
        drawn[place] = open_ones.pop()
    return drawn
