"""What a training gained and what it lost, as pure functions of tables of scores.

A table is ``table[stage][task]``: the score on a task after a stage of training, higher is better (negate
losses and bits per byte). Row 0 is after the first stage. Definitions of Lopez-Paz and Ranzato 2017,
Gradient episodic memory, arXiv:1706.08840, and Chaudhry et al. 2018, Riemannian walk, arXiv:1801.10112.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Table = Sequence[Sequence[float]]


class Change(NamedTuple):
    """How a model moved on two texts, or two groups of tasks.

    Attributes:
        gain: How much better it is where it was trained.
        forgetting: How much worse it is elsewhere; below 0, it became better there too.
    """

    gain: float
    forgetting: float


def change(
    before: Change | tuple[float, float], after: tuple[float, float], *, higher_is_better: bool = False
) -> Change:
    """Return gain and forgetting of a training.

    Args:
        before: ``(domain, general)`` of the start, or of a control that saw as many bytes of general text:
            then what training on at all changes is in neither number.
        after: The same of the trained model.
        higher_is_better: False for losses and bits per byte.
    """
    sign = 1.0 if higher_is_better else -1.0
    return Change(sign * (after[0] - before[0]), -sign * (after[1] - before[1]))


def retention(before: float, after: float, *, chance: float | None = 0.0) -> float | None:
    """Return ``(after - chance) / (before - chance)``, the share of a skill that is kept; None without skill.

    Args:
        before: The score before, higher is better.
        after: The score after.
        chance: What guessing gives; None: nobody knows.
    """
    if chance is None or before <= chance:
        return None
    return (after - chance) / (before - chance)


def average(table: Table) -> float:
    """Return the mean score over all tasks after the last stage."""
    return float(_square(table)[-1].mean())


def backward_transfer(table: Table) -> float:
    """Return ``1/(T-1) sum_{j<T} (R[T,j] - R[j,j])``: what later stages did to earlier tasks.

    Args:
        table: (T, T), T at least 2; task j is what stage j trains.
    """
    scores = _square(table)
    return float((scores[-1] - np.diag(scores))[:-1].mean())


def forward_transfer(table: Table, start: Sequence[float]) -> float:
    """Return ``1/(T-1) sum_{j>1} (R[j-1,j] - b[j])``: what earlier stages did to tasks to come.

    Args:
        table: (T, T), T at least 2.
        start: b, the score on each task before any training.
    """
    scores = _square(table)
    if len(start) != len(scores):
        raise ValueError(f"{len(scores)} tasks and {len(start)} scores of the start")
    return float((np.diag(scores, k=1) - np.asarray(start, np.float64)[1:]).mean())


def mean_forgetting(table: Table) -> float:
    """Return ``1/(T-1) sum_{j<T} (max_{j<=i<T} R[i,j] - R[T,j])``: the loss from the best that was reached.

    Chaudhry's; that of libraries which take ``R[j,j]`` in place of the maximum is the backward transfer
    with its sign turned.

    Args:
        table: (T, T), T at least 2.
    """
    scores = _square(table)
    best = [scores[task:-1, task].max() for task in range(len(scores) - 1)]
    return float((np.array(best) - scores[-1, :-1]).mean())


def pareto(points: Sequence[Change]) -> list[int]:
    """Return the places of the points that no other one beats in both, in the order of their gain.

    A point is beaten by one with at least its gain and at most its forgetting that is better in one of them.
    Of equal points all are kept; a point with a NaN is never on the front.
    """
    known = [place for place, one in enumerate(points) if np.isfinite(one).all()]
    front: list[int] = []
    for place in sorted(known, key=lambda one: (-points[one].gain, points[one].forgetting)):
        last = points[front[-1]] if front else None
        if last is None or points[place].forgetting < last.forgetting or points[place] == last:
            front.append(place)
    return front[::-1]


def _square(table: Table) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    scores = np.asarray(table, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise ValueError(f"expected as many stages as tasks, at least two, got a table of {scores.shape}")
    return scores
