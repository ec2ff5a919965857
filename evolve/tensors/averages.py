"""Averages in which each entry, or each direction of the input, counts by how much a model cares about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evolve.tensors.blocks import blocks, flat
from evolve.tensors.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def fisher_average(
    tensors: Sequence[Tensor],
    fishers: Sequence[Tensor],
    weights: Sequence[float],
    *,
    factors: Sequence[float],
    floors: Sequence[float],
) -> Tensor:
    """Return ``sum(w F t) / sum(w F)``, entry by entry (Matena and Raffel 2022, arXiv:2111.09832).

    Where no model has any Fisher information it is ``sum(w t) / sum(w)``.

    Args:
        tensors: float32, all of one shape, at least one.
        fishers: Diagonal Fisher information of each, of the same shape, float32.
        weights: One per tensor, not negative, not all zero.
        factors: What each Fisher information is multiplied by.
        floors: Its smallest value after that.
    """
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    total = flat(out)
    sources = [flat(tensor) for tensor in tensors]
    known = [flat(fisher) for fisher in fishers]
    whole = sum(weights)
    for part in blocks(total.size):
        shape = total[part].shape
        above, below, plain = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for source, fisher, weight, factor, floor in zip(
            sources, known, weights, factors, floors, strict=True
        ):
            wide = source[part].astype(np.float64)
            mass = np.maximum(fisher[part].astype(np.float64) * factor, floor) * weight
            above += mass * wide
            below += mass
            plain += wide * (weight / whole)
        nothing = below == 0
        below[nothing] = 1
        above /= below
        above[nothing] = plain[nothing]
        total[part] = above
    return out


def regression_average(
    matrices: Sequence[Tensor], grams: Sequence[Tensor], weights: Sequence[float], *, keep: float
) -> Tensor:
    """Return the linear layer whose outputs are closest to those of all layers (RegMean; Jin et al. 2023).

    With G the inner products of a layer's inputs, off the diagonal times ``keep``, it is
    ``(sum w G)^-1 sum w G W`` (arXiv:2212.09849), the minimum of ``sum w |X M - X W|^2`` for ``keep = 1``.
    What the inputs say nothing of (a feature that is always zero) is the weighted mean of the layers.

    Args:
        matrices: float32 of shape (in, out), at least one.
        grams: ``X.T @ X`` of each, symmetric, of shape (in, in), float32.
        weights: One per matrix, not negative, not all zero.
        keep: Share of the off-diagonal products that is kept, from 0 to 1.

    Returns:
        float32 of shape (in, out). NaN everywhere if an input is not finite.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*matrices, *grams)):
        return torch.full(matrices[0].shape, torch.nan)
    whole = sum(weights)
    with one_thread():
        mean = sum(
            (
                matrix.to(torch.float64) * (weight / whole)
                for matrix, weight in zip(matrices, weights, strict=True)
            ),
            start=torch.zeros(matrices[0].shape, dtype=torch.float64),
        )
        rows = matrices[0].shape[0]
        left = torch.zeros((rows, rows), dtype=torch.float64)
        # Solved for the distance from the mean: it is small, and zero where nothing is known.
        right = torch.zeros_like(mean)
        for matrix, gram, weight in zip(matrices, grams, weights, strict=True):
            share = gram.to(torch.float64) * (weight / whole)
            diagonal = share.diagonal().clone()
            share *= keep
            share.diagonal().copy_(diagonal)
            left += share
            right += share @ (matrix.to(torch.float64) - mean)
        return (mean + _solve(left, right)).to(torch.float32)


def _solve(left: Tensor, right: Tensor) -> Tensor:
    """Solve ``left @ x = right``, ``left`` positive semidefinite.

    Of many solutions return the smallest, each input counted in units of its size.
    """
    # Scaled to a diagonal of ones: inputs differ by orders of magnitude.
    scale = left.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).reciprocal()
    scaled = left * scale[:, None] * scale
    empty = scaled.diagonal() == 0
    scaled.diagonal()[empty] = 1
    target = right * scale[:, None]
    factor, failed = torch.linalg.cholesky_ex(scaled)
    # What the rounding of a float32 matrix with a diagonal of ones does to its eigenvalues.
    noise = 4 * len(scale) ** 0.5 * torch.finfo(torch.float32).eps
    if len(scale) == 0 or (not int(failed) and float(factor.diagonal().amin()) ** 2 > noise):
        return torch.cholesky_solve(target, factor) * scale[:, None]
    values, vectors = torch.linalg.eigh(scaled)
    certain = values > noise
    vectors, values = vectors[:, certain], values[certain]
    found: Tensor = vectors @ ((vectors.T @ target) / values[:, None])
    return found * scale[:, None]
