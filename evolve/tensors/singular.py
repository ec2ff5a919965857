"""Task singular vectors (Gargiulo et al. 2025, Task Singular Vectors, arXiv:2412.00081)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evolve.tensors.selection import kept
from evolve.tensors.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_EPSILON = torch.finfo(torch.float32).eps


def merge_singular(deltas: Sequence[Tensor], share: float | None = None) -> Tensor:
    """Add up task matrices after making their singular vectors orthogonal to each other (TSV-Merge).

    Each matrix keeps its largest singular values. The left singular vectors of all of them, side by side,
    are replaced by the closest matrix with orthonormal columns (Procrustes), the right ones likewise, and the
    matrix is put together again with the singular values as they were.

    Directions that are rounding errors of float32 have no part: singular values that small, and combinations
    of the vectors that small (of two equal matrices both have the same vectors). There the paper's formula
    leaves the result to chance.

    Args:
        deltas: float32, all of one shape of two dimensions, at least one.
        share: Share of the singular values that each keeps, rounded down, one at least; 0: none. None: one
            over the number of matrices.

    Returns:
        float32. NaN everywhere if a matrix is not finite.
    """
    shape = deltas[0].shape
    if not all(bool(torch.isfinite(delta).all()) for delta in deltas):
        return torch.full(shape, torch.nan)
    short = min(shape)
    count = max(1, short // len(deltas)) if share is None else kept(short, share)
    if short == 0 or count == 0:
        return torch.zeros(shape)
    with one_thread():
        parts = [_largest(delta, count) for delta in deltas]
        lefts, values, rights = (torch.cat(column, dim=-1) for column in zip(*parts, strict=True))
        if values.numel() == 0:
            return torch.zeros(shape)
        return ((_orthogonal(lefts) * values) @ _orthogonal(rights).T).to(torch.float32)


def _largest(delta: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left singular vectors, values and right singular vectors, vectors as columns, float64."""
    if delta.shape[0] > delta.shape[1]:
        right, values, left = _largest(delta.T, count)
        return left, values, right
    wide = delta.to(torch.float64)
    # In float64 the squares lose nothing that float32 has, and are several times cheaper to take apart.
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    left = vectors.flip(1)[:, : min(count, _rank(squares, delta))]
    right = wide.T @ left
    values = right.norm(dim=0)
    return left, values, right / values


def _orthogonal(columns: Tensor) -> Tensor:
    """Return the closest matrix with orthonormal columns, or rows where there are more columns than rows."""
    if columns.shape[0] < columns.shape[1]:
        return _orthogonal(columns.T).T
    squares, vectors = torch.linalg.eigh(columns.T @ columns)
    certain = slice(len(squares) - _rank(squares, columns), None)
    roots = vectors[:, certain] * squares[certain].rsqrt()
    nearest: Tensor = columns @ (roots @ vectors[:, certain].T)
    return nearest


def _rank(squares: Tensor, of: Tensor) -> int:
    """Return how many singular values, squared, stand out from the rounding errors of float32."""
    return int((squares > squares[-1] * (max(of.shape) * _EPSILON) ** 2).sum())
