"""Elements by the rank of their magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, Floats, blocks, shared
from evolve.tensors.fused.terms import RANKED_STEPS, RankedChance
from evolve.tensors.selection import kept

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_TOP = np.uint32(0x7FFFFFFF)
_SHORT = 1 << 16
_DEVICE_BLOCK = 1 << 26


def largest(numbers: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which ``count`` numbers are the largest; of equal ones those that come first.

    Args:
        numbers: float32 or float64, one axis, none negative. NaN counts as larger than all.
        count: At most that many, and not more than there are, are true.
    """
    return between(numbers, 0, count)


def between(numbers: NDArray[Any], first: int, last: int) -> NDArray[np.bool_]:
    """Return which numbers are the ``first`` to ``last - 1`` of the order from the largest to the smallest.

    Equal ones are in the order of their places.

    Args:
        numbers: float32 or float64, one axis, none negative. NaN counts as larger than all.
        first: Counted from 0.
        last: Not below ``first``. Both may be beyond the ends.
    """
    # Floats without a sign are ordered as the integers of the same bits, which numpy selects faster.
    bits = numbers.view(np.int32 if numbers.dtype == np.float32 else np.int64)
    ends = [min(max(end, 0), bits.size) for end in (first, last)]
    places = [bits.size - end for end in ends if 0 < end < bits.size]
    ordered = np.partition(bits, places) if places else bits
    found = _top(bits, ordered, ends[1])
    if ends[0]:
        found &= ~_top(bits, ordered, ends[0])
    return found


def _top(bits: NDArray[Any], ordered: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which ``count`` numbers are the largest; the count-th largest of ``ordered`` is in its place."""
    if count == 0 or count == bits.size:
        return np.full(bits.size, count > 0)
    threshold = ordered[bits.size - count]
    found: NDArray[np.bool_] = bits > threshold
    missing = count - int(np.count_nonzero(found))
    found[np.flatnonzero(bits == threshold)[:missing]] = True
    return found


def drop_outliers_(delta: Tensor, density: float, gamma: float, *, rescale: bool = False) -> Tensor:
    """Set the largest and the smallest magnitudes to zero, in place (Breadcrumbs; arXiv:2312.06795).

    Exactly ``kept(numel, density)`` elements stay. From the largest to the smallest (equal ones in the order
    of their places), the first ``int(gamma * numel)`` go, the next stay, and the rest go. Where the density
    leaves no room for that, fewer of the large ones go.

    Args:
        delta: float32, contiguous.
        density: Share of the elements to keep.
        gamma: Share of the elements that are outliers.
        rescale: Multiply what stays so that the sum of magnitudes is the same as before.
    """
    values = shared(delta)
    count = kept(values.size, density)
    if count == values.size:
        return delta
    outliers = min(int(gamma * values.size), values.size - count)
    magnitudes = np.abs(values)
    keep = between(magnitudes, outliers, outliers + count)
    before = _sum(magnitudes) if rescale else 0.0
    # A product, so that NaN and infinity are not hidden.
    for part in blocks(values.size):
        np.multiply(values[part], keep[part], out=values[part])
    after = _sum(np.abs(values, out=magnitudes)) if rescale else 0.0
    if after > 0.0:
        for part in blocks(values.size):
            # In float64: beside the outliers that went, what stays may be so small that float32 overflows.
            values[part] = values[part].astype(np.float64) * (before / after)
    return delta


def _sum(values: Floats) -> float:
    return sum(float(np.add.reduce(values[part], dtype=np.float64)) for part in blocks(values.size))


def ranked_chance(ranks: Tensor, density: float, epsilon: float, seed: int, *, rescale: bool) -> RankedChance:
    """Return the rule by which large magnitudes stay more often than small ones (DELLA; arXiv:2406.11617).

    Within each row the probability to stay rises evenly with the rank, from ``density - epsilon`` for the
    smallest magnitude to ``density + epsilon`` for the largest, clamped into [0, 1]. The only element of a
    row stays with probability ``density``.

    Args:
        ranks: Of :func:`row_ranks`.
        density: Mean probability to stay, before clamping.
        epsilon: Half the difference between the highest and the lowest probability.
        seed: From 0 to 2**64 - 1.
        rescale: Divide what stays by its own probability, which keeps the expectation.
    """
    width = _width(ranks)
    lowest, slope = (density - epsilon, 2 * epsilon / (width - 1)) if width > 1 else (density, 0.0)
    return RankedChance(seed, ranks, lowest * RANKED_STEPS, slope * RANKED_STEPS, rescale)


def row_ranks(tensor: Tensor, base: Tensor) -> Tensor:
    """Return the rank of each magnitude of ``tensor - base`` within its row, 0 for the smallest.

    A row is a vector along the last axis; a tensor of fewer than two axes is one row. Of equal magnitudes the
    one that comes first ranks higher, as in :func:`largest`.

    Args:
        tensor: float32, bfloat16 or float16, on any device.
        base: Of the same shape, on the same device.

    Returns:
        A tensor of the same shape: uint16, or int32 if a row has more than 65536 elements.
    """
    width = _width(tensor)
    kind = torch.uint16 if width <= _SHORT else torch.int32
    ranks = torch.empty((tensor.numel() // width if width else 0, width), dtype=kind, device=tensor.device)
    first, second = (each.reshape(ranks.shape) for each in (tensor, base))
    height = max(1, (BLOCK if tensor.device.type == "cpu" else _DEVICE_BLOCK) // max(width, 1))
    for top in range(0, len(ranks) if width else 0, height):
        part = slice(top, top + height)
        delta = first[part].float() - second[part].float()
        if tensor.device.type == "cpu":
            places = torch.from_numpy(_descending(delta.numpy()))
        else:
            places = delta.abs().argsort(dim=1, descending=True, stable=True)
        falling = torch.arange(width - 1, -1, -1, dtype=torch.int32, device=tensor.device)
        found = torch.empty(places.shape, dtype=torch.int32, device=tensor.device)
        ranks[part] = found.scatter_(1, places, falling.expand(places.shape)).to(kind)
    return ranks.reshape(tensor.shape)


def _width(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.ndim else 1


def _descending(table: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return each row's places from the largest magnitude to the smallest, equal ones in order.

    Args:
        table: float32, two axes, at most 2**32 columns.
    """
    magnitudes = np.abs(table).view(np.uint32)
    # Rank and place in one integer: they are sorted faster than an argsort, and no two are equal.
    keys = (_TOP - magnitudes).astype(np.uint64) << _HALF
    keys |= np.arange(table.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= _LOW
    return keys.view(np.int64)
