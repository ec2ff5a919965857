"""Setting elements of a task vector to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evolve.tensors.blocks import BLOCK, Floats, blocks, shared
from evolve.tensors.random import words

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 1 << 32  # one random number decides in steps of 1/2**32


def kept(count: int, density: float) -> int:
    """Return how many of ``count`` elements stay: ``density * count`` rounded down, one at least; 0 for 0."""
    if density <= 0 or count == 0:
        return 0
    return min(count, max(1, int(density * count)))


def trim_(delta: Tensor, density: float, *, rescale: bool = False) -> Tensor:
    """Keep the largest magnitudes and set the rest to zero, in place (TIES, arXiv:2306.01708).

    Exactly ``kept(numel, density)`` elements stay. Of equal magnitudes the ones that come first stay.

    Args:
        delta: float32, contiguous.
        density: Share of the elements to keep.
        rescale: Multiply what stays so that the sum of magnitudes is the same as before.
    """
    values = shared(delta)
    count = kept(values.size, density)
    if count == values.size:
        return delta
    if count == 0:
        return delta.zero_()
    before = _magnitude(values) if rescale else 0.0
    threshold, end_of_ties = _threshold(values, count)
    magnitude = np.empty(BLOCK, np.float32)
    for part in blocks(values.size):
        block = values[part]
        size = np.abs(block, out=magnitude[: block.size])
        keep = size >= threshold
        if part.stop > end_of_ties:
            ties = max(0, end_of_ties - part.start)
            keep[ties:] = size[ties:] > threshold
        # A product, so that NaN and infinity are not hidden.
        np.multiply(block, keep, out=block)
    after = _magnitude(values) if rescale else 0.0
    if after > 0.0:
        delta.mul_(before / after)
    return delta


def _threshold(values: Floats, count: int) -> tuple[np.float32, int]:
    """Return the ``count``-th largest magnitude and the index from which equal ones do not stay any more."""
    magnitudes = np.abs(values)
    place = values.size - count
    # Floats without a sign are ordered as the integers of the same bits, which numpy selects faster.
    magnitudes.view(np.int32).partition(place)
    threshold = magnitudes[place]
    larger = int(np.count_nonzero(magnitudes[place:] > threshold))
    wanted = count - larger
    if int(np.count_nonzero(magnitudes == threshold)) <= wanted:
        return threshold, values.size
    magnitudes = np.abs(values, out=magnitudes)
    return threshold, int(np.flatnonzero(magnitudes == threshold)[wanted])


def _magnitude(values: Floats) -> float:
    total = 0.0
    for part in blocks(values.size):
        total += float(np.add.reduce(np.abs(values[part]), dtype=np.float64))
    return total


def drop_(delta: Tensor, density: float, seed: int, *, rescale: bool = True) -> Tensor:
    """Keep each element with probability ``density``, in place (DARE; Yu et al. 2024, arXiv:2311.03099).

    Element ``i`` stays if its word of :mod:`evolve.tensors.random` is below ``density * 2**32``. So it
    depends on the seed and on the element's place alone.

    Args:
        delta: float32, contiguous.
        density: Probability to stay.
        seed: From 0 to 2**64 - 1.
        rescale: Divide what stays by the probability, which keeps the expectation.
    """
    values = shared(delta)
    limit = round(min(max(density, 0.0), 1.0) * _STEPS)
    if limit == _STEPS:
        return delta
    if limit == 0:
        return delta.zero_()
    factor = np.float32(_STEPS / limit)
    for part in blocks(values.size):
        block = values[part]
        np.multiply(block, words(seed, part.start, block.size) < np.uint32(limit), out=block)
        if rescale:
            block *= factor
    return delta
