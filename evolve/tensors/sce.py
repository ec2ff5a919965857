"""Select, calculate, erase: what to merge, seen over all models (SCE; Wan et al. 2024, arXiv:2408.07990)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evolve.tensors.blocks import BLOCK, blocks, flat, shared
from evolve.tensors.magnitude import largest
from evolve.tensors.selection import kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def keep_varied_(deltas: Sequence[Tensor], share: float) -> None:
    """Set all deltas to zero in the places where they vary least, in place.

    Of the places where the deltas are not all equal, ``kept(places, share)`` stay: those where their
    variance is the largest, of equal ones the first. A share of 1 changes nothing; below 1, places where all
    deltas are equal do not stay.

    Args:
        deltas: float32, contiguous, all of one shape, at least one.
        share: From 0 to 1.
    """
    if share >= 1:
        return
    sources = [shared(delta) for delta in deltas]
    variance = np.empty(sources[0].size, np.float64)
    table = np.empty((len(sources), BLOCK), np.float64)
    for part in blocks(variance.size):
        view = table[:, : variance[part].size]
        for row, source in zip(view, sources, strict=True):
            row[:] = source[part]
        # Equal float32 numbers have a mean and differences that are exact in float64: their variance is 0.
        view -= np.add.reduce(view, axis=0) / len(sources)
        np.square(view, out=view)
        np.add.reduce(view, axis=0, out=variance[part])
    keep = largest(variance, kept(int(np.count_nonzero(variance)), share))
    for source in sources:
        for part in blocks(source.size):
            # A product, so that NaN and infinity are not hidden.
            np.multiply(source[part], keep[part], out=source[part])


def energy(delta: Tensor) -> float:
    """Return the sum of the squares, which in float64 neither overflows nor vanishes."""
    values = flat(delta)
    return sum(
        float(np.add.reduce(np.square(values[part], dtype=np.float64))) for part in blocks(values.size)
    )


def erase_minority_(deltas: Sequence[Tensor]) -> None:
    """Set to zero, in each place, the deltas whose sign is not that of their sum, in place.

    A sum of exactly zero elects plus.

    Args:
        deltas: float32, contiguous, all of one shape, at least one.
    """
    sources = [shared(delta) for delta in deltas]
    total = np.empty(BLOCK, np.float64)
    for part in blocks(sources[0].size):
        into = total[: sources[0][part].size]
        into[:] = 0
        for source in sources:
            into += source[part]
        positive = ~(into < 0)
        for source in sources:
            block = source[part]
            np.multiply(block, (block > 0) == positive, out=block)
