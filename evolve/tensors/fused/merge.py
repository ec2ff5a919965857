"""The choice between the compiled pass and the one in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from evolve.tensors.fused.buffers import Buffers
from evolve.tensors.fused.eager import merge_eagerly
from evolve.tensors.fused.terms import Chance, Magnitude, RankedChance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.tensors.fused.terms import Keep, Term

Elect: TypeAlias = Literal["sum", "mean"]

# How numpy sees the stored types: it has no bfloat16, and numba no float16.
_STORED = {torch.bfloat16: torch.uint16, torch.float16: torch.int16, torch.float32: torch.float32}


def merge(
    base: Tensor | None,
    terms: Sequence[Term],
    *,
    dtype: torch.dtype,
    elect: Elect | None = None,
    divisor: float = 1.0,
    factor: float = 1.0,
    buffers: Buffers | None = None,
) -> Tensor:
    """Return ``base + factor * sum / divisor``, the sum over ``weight * scale * kept(tensor - base)``.

    All arithmetic is float32, in the order of ``terms``, with one rounding at the end. A NaN or an infinity
    in a tensor comes out as one or the other.

    Args:
        base: What task vectors start from; None: the terms are whole tensors, and nothing is added.
        terms: At least one; all of the shape of the base, on one device.
        dtype: Of the result: float32, bfloat16 or float16.
        elect: Add up only the terms that have the elected sign: that of the sum of all terms, plus for zero
            (TIES; Yadav et al. 2023, arXiv:2306.01708). ``mean`` divides by the sum of the magnitudes of the
            weights that took part, so that the result is never larger than the largest term.
        divisor: Not zero.
        factor: Lambda.
        buffers: Where a result on the CPU gets its memory from; None: from the system.
    """
    tensors = [term.tensor for term in terms] + ([] if base is None else [base])
    if dtype in _STORED and all(_compiled(tensor) for tensor in tensors) and all(map(_short, terms)):
        out = (buffers or Buffers(0)).empty(tensors[0].shape, dtype)
        _merge_compiled(base, terms, out, elect=elect, divisor=divisor, factor=factor)
        return out
    return merge_eagerly(base, terms, dtype=dtype, elect=elect, divisor=divisor, factor=factor)


def _compiled(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _STORED


def _short(term: Term) -> bool:
    """Whether ranks fit into 16 bits, as the compiled pass wants them."""
    return not isinstance(term.keep, RankedChance) or term.keep.ranks.dtype == torch.uint16


def _merge_compiled(
    base: Tensor | None,
    terms: Sequence[Term],
    out: Tensor,
    *,
    elect: Elect | None,
    divisor: float,
    factor: float,
) -> None:
    from evolve.tensors.fused import kernel

    tensors = [term.tensor for term in terms] + ([] if base is None else [base])
    types = {tensor.dtype for tensor in tensors}
    stored = types.pop() if len(types) == 1 else torch.float32
    # Kept in a list: the kernel has their addresses only.
    arrays = [_array(term.tensor.to(stored)) for term in terms]
    origin = np.empty(0, arrays[0].dtype) if base is None else _array(base.to(stored))
    ranks = [_ranks(term.keep) for term in terms]
    tables = [_table(term.keep) for term in terms]
    kernel.fused(
        origin,
        base is not None,
        np.array([array.ctypes.data for array in arrays], np.int64),
        np.array([term.weight for term in terms], np.float32),
        np.array([term.scale for term in terms], np.float32),
        np.array([_mode(term.keep) for term in terms], np.int64),
        np.array([getattr(term.keep, "threshold", 0) for term in terms], np.int64),
        np.array([getattr(term.keep, "ties", 0) for term in terms], np.int64),
        np.array([getattr(term.keep, "seed", 0) for term in terms], np.uint64),
        np.array([getattr(term.keep, "limit", 0) for term in terms], np.uint64),
        np.array([0 if array is None else array.ctypes.data for array in ranks], np.int64),
        np.array([0 if array is None else array.ctypes.data for array in tables], np.int64),
        {None: kernel.NO_SUM, "sum": kernel.SUM, "mean": kernel.MEAN}[elect],
        np.float32(divisor),
        np.float32(factor),
        _array(out),
    )


def _mode(keep: Keep) -> int:
    from evolve.tensors.fused import kernel

    modes = {Magnitude: kernel.MAGNITUDE, Chance: kernel.CHANCE, RankedChance: kernel.RANKED}
    return modes.get(type(keep), kernel.EVERYTHING)


def _ranks(keep: Keep) -> Any:
    return keep.ranks.contiguous().view(-1).numpy() if isinstance(keep, RankedChance) else None


def _table(keep: Keep) -> Any:
    """Return for each rank, in 64 bits, the last word that keeps an entry, and the bits of its factor."""
    if not isinstance(keep, RankedChance):
        return None
    limits = keep.limits.numpy()
    # Of a limit of 0 the word 0 would be left; its factor makes it zero.
    factors = np.where(limits > 0, keep.factors.numpy(), np.float32(0))
    last = np.maximum(limits - 1, 0).astype(np.uint64)
    return last | (factors.view(np.uint32).astype(np.uint64) << np.uint64(32))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().view(-1).view(_STORED[tensor.dtype]).numpy()
