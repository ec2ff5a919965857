"""Sums and interpolations of whole tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, blocks, flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Closer than this (or as close to opposite) the arc is a straight line for all purposes, and its formula 0/0.
_STRAIGHT = 0.9995


def difference(tensor: Tensor, base: Tensor) -> Tensor:
    """Return ``tensor - base``: a task vector (Ilharco et al. 2023, arXiv:2212.04089)."""
    out = torch.empty(tensor.shape, dtype=torch.float32)
    np.subtract(flat(tensor), flat(base), out=flat(out))
    return out


def weighted_sum(
    tensors: Sequence[Tensor], weights: Sequence[float], *, divisor: float = 1.0, start: Tensor | None = None
) -> Tensor:
    """Return ``start + sum(weight * tensor) / divisor``, added in the order given.

    Args:
        tensors: float32, all of one shape, at least one.
        weights: One per tensor.
        divisor: Not zero. Thirds of equal weights are more exact as ``(1, 1, 1) / 3``.
        start: Of the same shape; None for zero.
    """
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    total = flat(out)
    sources = [flat(tensor) for tensor in tensors]
    origin = None if start is None else flat(start)
    term = np.empty(BLOCK, np.float32)
    for part in blocks(total.size):
        into = total[part]
        scaled = term[: into.size]
        np.multiply(sources[0][part], np.float32(weights[0]), out=into)
        for source, weight in zip(sources[1:], weights[1:], strict=True):
            np.multiply(source[part], np.float32(weight), out=scaled)
            into += scaled
        if divisor != 1.0:
            into /= np.float32(divisor)
        if origin is not None:
            into += origin[part]
    return out


def lerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return ``(1 - t) * first + t * second``; exactly ``first`` at t = 0 and ``second`` at t = 1."""
    return weighted_sum((first, second), (1 - t, t))


def cosine(first: Tensor, second: Tensor) -> float | None:
    """Return the cosine between two tensors as vectors, or None where one of them is zero."""
    dot = norm_first = norm_second = 0.0
    left, right = flat(first), flat(second)
    for part in blocks(left.size):
        # The products of two float32 are exact in float64; neither overflow nor underflow can occur.
        a, b = left[part].astype(np.float64), right[part].astype(np.float64)
        dot += float(np.add.reduce(a * b))
        norm_first += float(np.add.reduce(np.square(a)))
        norm_second += float(np.add.reduce(np.square(b)))
    if norm_first == 0.0 or norm_second == 0.0:
        return None
    return max(-1.0, min(1.0, dot / (math.sqrt(norm_first) * math.sqrt(norm_second))))


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Interpolate along the arc between two tensors, each taken as one vector (Shoemake 1985).

    Lengths are interpolated with the directions. Where the two point in (nearly) the same or opposite
    directions, or one is zero and has no direction, the result is that of :func:`lerp`.
    """
    cos = cosine(first, second)
    if cos is None or abs(cos) > _STRAIGHT:
        return lerp(first, second, t)
    angle = math.acos(cos)
    weights = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return weighted_sum((first, second), weights)
