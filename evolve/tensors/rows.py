"""Tensors as lists of vectors: their lengths and sums, in float64.

A matrix here is a two-dimensional view of a tensor, one vector a row: the whole tensor, or those along its
last axis. Everything is done in float64, tile by tile, and rounded once: where vectors nearly cancel out,
what is left of them is still exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, flat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

Matrix: TypeAlias = "NDArray[np.float32]"
Column: TypeAlias = "NDArray[np.float64]"


def matrix(tensor: Tensor, *, whole: bool = True) -> Matrix:
    """Return a view of a float32 tensor with one vector a row; of a contiguous one it shares the memory.

    Args:
        tensor: float32.
        whole: Take the tensor as a single vector. False: take those along its last axis; a tensor of fewer
            than two axes has only one.
    """
    values = flat(tensor)
    if whole or tensor.ndim < 2:
        return values.reshape(1, values.size)
    width = tensor.shape[-1]
    # A reshape to -1 could not tell how many empty vectors there are.
    return values.reshape(tensor.shape[:-1].numel(), width)


def tiles(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield parts of a matrix of about ``BLOCK`` elements that cover it: some rows, or a part of one."""
    if rows * width == 0:
        return
    height = max(1, BLOCK // width)
    for top in range(0, rows, height):
        for left in range(0, width, BLOCK):
            yield slice(top, min(top + height, rows)), slice(left, min(left + BLOCK, width))


def lengths(vectors: Matrix) -> Column:
    """Return the Euclidean length of each row. Squares of float32 neither overflow nor vanish in float64."""
    return sum_lengths([vectors], [np.ones(len(vectors))])


def sum_lengths(parts: Sequence[Matrix], weights: Sequence[Column]) -> Column:
    """Return the length of each row of the sum of weight times matrix; a weight for each row."""
    squares = np.zeros(len(parts[0]))
    for tile in tiles(*parts[0].shape):
        squares[tile[0]] += np.add.reduce(np.square(_sum(parts, weights, tile)), axis=1)
    found: Column = np.sqrt(squares)
    return found


def dots(parts: Sequence[Matrix]) -> Column:
    """Return the matrix of the dot products of vectors, each given as a matrix of one row."""
    found = np.zeros((len(parts), len(parts)))
    for tile in tiles(*parts[0].shape):
        exact = [part[tile].astype(np.float64) for part in parts]
        for i, first in enumerate(exact):
            for j, second in enumerate(exact[: i + 1]):
                found[i, j] += np.add.reduce(first * second, axis=1)[0]
    lower: Column = np.tril(found)
    return lower + np.tril(found, -1).T


def combine(
    tensors: Sequence[Tensor], weights: Sequence[Column], *, start: Tensor | None = None, whole: bool = True
) -> Tensor:
    """Return ``start + sum(weight * tensor)``, added in float64 and rounded once.

    Args:
        tensors: float32, all of one shape, at least one.
        weights: For each tensor one number for each of its vectors (:func:`matrix`).
        start: Of the same shape; None for zero.
        whole: Whether each tensor is a single vector.
    """
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    into = matrix(out, whole=whole)
    parts = [matrix(tensor, whole=whole) for tensor in tensors]
    origin = None if start is None else matrix(start, whole=whole)
    for tile in tiles(*into.shape):
        total = _sum(parts, weights, tile)
        into[tile] = total if origin is None else total + origin[tile]
    return out


def combine_on_device(
    tensors: Sequence[Tensor], weights: Sequence[Column], *, start: Tensor | None = None, whole: bool = True
) -> Tensor:
    """Return the bits of :func:`combine` by single operations of torch, on the device of the tensors."""
    shape = (1, -1) if whole or tensors[0].ndim < 2 else (tensors[0].shape[:-1].numel(), tensors[0].shape[-1])
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for place, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        factors = torch.from_numpy(weight).to(tensor.device)[:, None]
        term = tensor.reshape(shape).double() * factors
        total = total + term if place else term
    if start is not None:
        total = total + start.reshape(shape).double()
    return total.to(torch.float32).view(tensors[0].shape)


def inverse(numbers: Column) -> Column:
    """Return one over each number, and 0 for 0: what makes a vector of that length a unit vector."""
    return np.divide(1.0, numbers, out=np.zeros_like(numbers), where=numbers != 0)


def _sum(parts: Sequence[Matrix], weights: Sequence[Column], tile: tuple[slice, slice]) -> Column:
    total: Column = weights[0][tile[0], None] * parts[0][tile]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += weight[tile[0], None] * part[tile]
    return total
