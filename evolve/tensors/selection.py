"""The exact k-th largest magnitude of a task vector, for any k, from a table that is made once.

A search asks for another k with each candidate, while the task vector stays. Where it has few distinct
magnitudes (bfloat16 weights: some thousands) the table holds them all with their counts. Else it holds every
n/1024-th magnitude in order; then one pass over the task vector gathers what lies between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from evolve.tensors.fused.terms import Everything, Magnitude

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from evolve.tensors.fused.terms import Keep

Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Bits: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"

_MOST_DISTINCT = 1 << 16
_QUANTILES = 1024
_PART = 1 << 20
_MAGNITUDE_BITS = np.int32(0x7FFFFFFF)


@dataclass(frozen=True)
class Selection:
    """What is known of the magnitudes of one task vector; make it with :func:`selection`.

    Attributes:
        size: Number of elements.
        marks: int32, falling: distinct magnitudes as the integers of their float32 bits.
        reached: int64: how many elements are at least as large as each mark.
        complete: Whether the marks are all magnitudes there are.
    """

    size: int
    marks: Bits
    reached: Integers
    complete: bool

    @property
    def nbytes(self) -> int:
        """Memory that the table takes."""
        return int(self.marks.nbytes + self.reached.nbytes)

    def largest(self, count: int, tensor: Tensor, base: Tensor) -> Magnitude:
        """Return the rule by which exactly the ``count`` largest magnitudes of ``tensor - base`` stay.

        Of equal magnitudes those that come first stay.

        Args:
            count: From 1 to ``size``.
            tensor: The tensors that the table was made from.
            base: See there.
        """
        if not 0 < count <= self.size:
            raise ValueError(f"count must be from 1 to {self.size}, got {count}")
        place = int(np.searchsorted(self.reached, count))
        threshold = int(self.marks[place])
        larger = int(self.reached[place - 1]) if place else 0
        if self.complete or self.reached[place] == larger + 1:
            return Magnitude(threshold, count - larger)
        above = int(self.marks[place - 1]) if place else int(_MAGNITUDE_BITS)
        between = magnitudes(tensor, base)
        between = between[(between >= threshold) & ((between < above) if place else True)]
        at = between.size - (count - larger)
        between.partition(at)
        threshold = int(between[at])
        return Magnitude(threshold, count - larger - int(np.count_nonzero(between > threshold)))


def magnitudes(tensor: Tensor, base: Tensor) -> Bits:
    """Return the magnitudes of ``tensor - base`` as the integers of their float32 bits: the same order."""
    left, right = tensor.contiguous().view(-1), base.contiguous().view(-1)
    found: Bits = np.empty(left.numel(), np.int32)
    # In parts: of the largest tensor there is this array and no other.
    for start in range(0, found.size, _PART):
        part = slice(start, start + _PART)
        delta = (left[part].float() - right[part].float()).cpu()
        np.bitwise_and(delta.view(torch.int32).numpy(), _MAGNITUDE_BITS, out=found[part])
    return found


def selection(tensor: Tensor, base: Tensor) -> Selection:
    """Return the table of ``tensor - base``. Both float32, bfloat16 or float16, of one shape, not empty."""
    found = magnitudes(tensor, base)
    found.sort()
    found = found[::-1]
    # The last of each run of equal magnitudes: its index + 1 elements are at least as large.
    ends = np.append(np.flatnonzero(found[1:] != found[:-1]), found.size - 1)
    if ends.size <= max(_QUANTILES, min(_MOST_DISTINCT, found.size // 16)):
        return Selection(found.size, found[ends].copy(), ends + 1, complete=True)
    wanted = np.linspace(0, ends.size - 1, _QUANTILES + 1).astype(np.int64)
    chosen = ends[wanted]
    return Selection(found.size, found[chosen].copy(), chosen + 1, complete=False)


def largest_on_device(count: int, tensor: Tensor, base: Tensor) -> Magnitude:
    """Return what :meth:`Selection.largest` returns, without a table: a GPU sorts faster than it sends."""
    sizes = (tensor.float() - base.float()).contiguous().view(-1).view(torch.int32) & 0x7FFFFFFF
    threshold = sizes.sort(descending=True).values[count - 1]
    larger = int((sizes > threshold).sum())
    return Magnitude(int(threshold), count - larger)


def kept_share(keep: Magnitude, tensor: Tensor, base: Tensor) -> float:
    """Return the sum of the magnitudes that stay by that of all of them; 1 where all are zero."""
    sizes = magnitudes(tensor, base)
    values = sizes.view(np.float32)
    whole = float(np.add.reduce(values, dtype=np.float64))
    larger = float(np.add.reduce(values[sizes > keep.threshold], dtype=np.float64))
    at = float(np.array(keep.threshold, np.int32).view(np.float32))
    return (larger + keep.ties * at) / whole if whole else 1.0


def trimmed(
    tensor: Tensor, base: Tensor, density: float, *, rescale: bool, table: Callable[[], Selection]
) -> tuple[Keep, float]:
    """Return the rule by which the largest entries of ``tensor - base`` stay, and the factor of what stays.

    Args:
        tensor: float32, bfloat16 or float16, on any device.
        base: Of the same shape, on the same device.
        density: Exactly ``kept(numel, density)`` entries stay (TIES; Yadav et al. 2023, arXiv:2306.01708).
        rescale: Restore the sum of the magnitudes.
        table: Gives the table of the two on the CPU, computed or kept.
    """
    count = kept(tensor.numel(), density)
    if count == tensor.numel():
        return Everything(), 1.0
    if count == 0:
        return Everything(), 0.0
    on_cpu = tensor.device.type == "cpu"
    keep = table().largest(count, tensor, base) if on_cpu else largest_on_device(count, tensor, base)
    share = kept_share(keep, tensor, base) if rescale else 1.0
    return keep, 1.0 / share if share else 1.0


def kept(count: int, density: float) -> int:
    """Return how many of ``count`` elements stay: ``density * count`` rounded down, one at least; 0 for 0."""
    if density <= 0 or count == 0:
        return 0
    return min(count, max(1, int(density * count)))
