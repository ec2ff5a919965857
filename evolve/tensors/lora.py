"""What an adapter makes of one weight: LoRA and DoRA.

Works on tiles that are too small for torch to split over threads: the bits depend on no number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# torch splits loops of 32768 elements and more.
_TILE = (1 << 15) - 1


def add_low_rank(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return ``weight + scale * left @ right`` in float32 (LoRA, Hu et al. 2021, arXiv:2106.09685).

    The product is summed up in float32 from the first rank to the last, then scaled, then added.

    Args:
        weight: ``(m, n)``, of any floating-point type.
        left: ``(m, r)``.
        right: ``(r, n)``.
        scale: alpha / r, or alpha / sqrt(r) where the rank is stabilised (arXiv:2312.03732).
    """
    _require_matrix(weight)
    if left.shape != (weight.shape[0], right.shape[0]) or right.shape[1:] != weight.shape[1:]:
        raise ValueError(f"{tuple(left.shape)} by {tuple(right.shape)} do not give {tuple(weight.shape)}")
    left, right = left.float(), right.float()
    out = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for tile in _tiles(weight.shape):
        rows, columns = tile
        delta = torch.zeros_like(out[tile])
        for rank in range(right.shape[0]):
            delta.addcmul_(left[rows, rank : rank + 1], right[rank, columns])
        torch.add(weight[tile].float(), delta, alpha=scale, out=out[tile])
    return out


def set_lengths(weight: Tensor, lengths: Tensor, *, dim: int) -> Tensor:
    """Return ``weight`` with its vectors along ``dim`` at the given lengths (DoRA, arXiv:2402.09353).

    Norms are summed up in float64. A vector that is zero has no direction and stays zero.

    Args:
        weight: ``(m, n)`` in float32.
        lengths: ``(m,)`` for ``dim`` 1, where the rows are the vectors; ``(n,)`` for ``dim`` 0.
        dim: 0 or 1.
    """
    _require_matrix(weight)
    if lengths.shape != (weight.shape[1 - dim],):
        raise ValueError(f"{tuple(lengths.shape)} lengths for {tuple(weight.shape)} along {dim}")
    squares = torch.zeros(lengths.shape, dtype=torch.float64, device=weight.device)
    for tile in _tiles(weight.shape):
        squares[tile[1 - dim]] += weight[tile].double().square().sum(dim)
    norms = squares.sqrt()
    factors = torch.where(norms > 0, lengths.double() / norms, 0.0).float().unsqueeze(dim)
    out = torch.empty_like(weight)
    for tile in _tiles(weight.shape):
        part = (tile[0], slice(None)) if dim == 1 else (slice(None), tile[1])
        torch.mul(weight[tile], factors[part], out=out[tile])
    return out


def _tiles(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    height, width = shape
    columns = min(width, _TILE)
    rows = _TILE // columns if columns else 1
    for left in range(0, width, columns or 1):
        for top in range(0, height, rows):
            yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


def _require_matrix(weight: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(f"expected a matrix, got {tuple(weight.shape)}")
