"""Rows of two corpora in one order: a share of the bytes, constant or changing with the progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from evolve.training.pack import Packed

MOST = 0.9
"""Largest share of replay."""


class Stretch(NamedTuple):
    """A part of the budget with one share of replay.

    Attributes:
        until: Where it ends, as a share of the whole budget.
        share: Bytes of replay among all bytes in it.
    """

    until: float
    share: float


def stretches(share: float, scales: Sequence[tuple[float, float]] = ()) -> tuple[Stretch, ...]:
    """Return the share of replay over the budget.

    Args:
        share: The share where no phase says otherwise, 0 to 0.9.
        scales: ``(until, factor)`` of each phase, in order; the last one's until is 1. A scaled share is at
            most 0.9.
    """
    scales = scales or ((1.0, 1.0),)
    return tuple(Stretch(until, min(MOST, share * factor)) for until, factor in scales)


def replayed(plan: Sequence[Stretch], until: float = 1.0) -> float:
    """Return how much replay is due until a place in the plan, in the unit of its ends."""
    total = begin = 0.0
    for stretch in plan:
        end = min(stretch.until, until)
        total += max(0.0, end - begin) * stretch.share
        begin = max(begin, stretch.until)
    return total


def mixed(
    data: Iterable[Packed], replay: Iterable[Packed], plan: Sequence[Stretch], total: float
) -> Iterator[Packed]:
    """Yield all rows of both, each in its own order, as evenly as the plan asks.

    A row of replay comes as soon as half of it is due. Where one kind has ended the other goes on.

    Args:
        data: Rows of the corpus.
        replay: Rows of the older corpus.
        plan: The share of replay over the budget.
        total: Bytes of both together.
    """
    in_bytes = [Stretch(stretch.until * total, stretch.share) for stretch in plan]
    left, right = iter(data), iter(replay)
    one, other = next(left, None), next(right, None)
    seen = old = 0.0
    while one is not None or other is not None:
        due = False
        if other is not None and one is not None:
            due = old + other.bytes / 2 <= replayed(in_bytes, seen + other.bytes)
        if other is not None and (due or one is None):
            yield other
            seen, old = seen + other.bytes, old + other.bytes
            other = next(right, None)
        elif one is not None:
            yield one
            seen += one.bytes
            one = next(left, None)
