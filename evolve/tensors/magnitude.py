"""Elements by the rank of their magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, Floats, blocks, shared
from evolve.tensors.interpolate import difference
from evolve.tensors.sparsify import kept

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_TOP = np.uint32(0x7FFFFFFF)
_SHORT = 1 << 16


def largest(numbers: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which ``count`` numbers are the largest; of equal ones those that come first.

    Args:
        numbers: float32 or float64, one axis, none negative. NaN counts as larger than all.
        count: At most that many, and not more than there are, are true.
    """
    if count <= 0:
        return np.zeros(numbers.size, np.bool_)
    if count >= numbers.size:
        return np.ones(numbers.size, np.bool_)
    # Floats without a sign are ordered as the integers of the same bits, which numpy selects faster.
    bits = numbers.view(np.int32 if numbers.dtype == np.float32 else np.int64)
    place = bits.size - count
    threshold = np.partition(bits, place)[place]
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
    keep = largest(magnitudes, outliers + count)
    keep &= ~largest(magnitudes, outliers)
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


def row_ranks(tensor: Tensor, base: Tensor) -> Tensor:
    """Return the rank of each magnitude of ``tensor - base`` within its row, 0 for the smallest.

    A row is a vector along the last axis; a tensor of fewer than two axes is one row. Of equal magnitudes the
    one that comes first ranks higher, as in :func:`largest`.

    Args:
        tensor: float32, bfloat16 or float16.
        base: Of the same shape.

    Returns:
        A tensor of the same shape: uint16, or int32 if a row has more than 65536 elements.
    """
    width = tensor.shape[-1] if tensor.ndim else 1
    dtype = np.uint16 if width <= _SHORT else np.int32
    ranks = np.empty((tensor.numel() // width if width else 0, width), dtype)
    ascending = np.arange(width - 1, -1, -1).astype(dtype)
    height = max(1, BLOCK // width) if width else 1
    rows = [each.reshape(len(ranks), width) for each in (tensor, base)] if ranks.size else []
    for top in range(0, len(ranks), height):
        part = slice(top, top + height)
        table = difference(rows[0][part].float(), rows[1][part].float()).numpy()
        np.put_along_axis(ranks[part], _descending(table), ascending[None], axis=1)
    return torch.from_numpy(ranks).reshape(tensor.shape)


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
