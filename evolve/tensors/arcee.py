"""Taking over some elements of another model: near ones, or important ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, blocks, flat
from evolve.tensors.rows import matrix, tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evolve.tensors.rows import Column, Matrix

_FLOOR = 1e-8  # added to each probability


def approach(base: Tensor, tensor: Tensor, most: float) -> Tensor:
    """Return ``base``, each element moved towards that of ``tensor``, but not farther than ``most``.

    Args:
        base: float32.
        tensor: Of the same shape.
        most: Not negative. Elements that are not farther apart are exactly those of ``tensor``.
    """
    out = torch.empty(base.shape, dtype=torch.float32)
    total, start, end = flat(out), flat(base), flat(tensor)
    limit = np.float32(most)
    for part in blocks(total.size):
        step = end[part] - start[part]
        near = np.abs(step) <= limit
        np.clip(step, -limit, limit, out=step)
        np.add(start[part], step, out=total[part])
        np.copyto(total[part], end[part], where=near)
    return out


def fuse_important(base: Tensor, tensor: Tensor) -> Tensor:
    """Return ``base`` with those elements of ``tensor`` that are important (Arcee Fusion).

    The importance of an element is the size of its change times the divergence of its row
    (:func:`row_divergence`). Those elements are taken over whose importance is at least the median plus 1.5
    times the difference between the upper and the lower quartile. The three are order statistics of all
    elements: numbers ``(n - 1) // 2``, ``3 * (n - 1) // 4`` and ``(n - 1) // 4`` from below, counted from 0.
    Where all importances are equal, all elements are taken over.

    Args:
        base: float32.
        tensor: Of the same shape.
    """
    out = torch.empty(base.shape, dtype=torch.float32)
    if out.numel() == 0:
        return out
    first, second, into = (matrix(each, whole=False) for each in (base, tensor, out))
    scale = row_divergence(second, first).astype(np.float32)
    for tile in tiles(*into.shape):
        np.multiply(np.abs(second[tile] - first[tile]), scale[tile[0], None], out=into[tile])
    threshold = _threshold(flat(out))
    for tile in tiles(*into.shape):
        taken = into[tile] >= threshold
        # A product, so that NaN is not hidden.
        np.multiply(second[tile] - first[tile], taken, out=into[tile])
        into[tile] += first[tile]
        np.copyto(into[tile], second[tile], where=taken)
    return out


def _threshold(importance: NDArray[np.float32]) -> float:
    last = importance.size - 1
    places = [last // 4, last // 2, 3 * last // 4]
    ordered = np.partition(importance, places)
    low, median, high = (float(ordered[place]) for place in places)
    return median + 1.5 * (high - low)


def row_divergence(rows: Matrix, base: Matrix) -> Column:
    """Return, for each row, the Kullback-Leibler divergence of its softmax from that of the base's row.

    1e-8 is added to each probability. The sum is written so that no term is negative and none cancels
    another out: the divergence of rows that are nearly the same is as exact as that of others.

    Args:
        rows: float32, two axes, at least one column.
        base: Of the same shape.
    """
    found = np.empty(len(rows))
    height = max(1, BLOCK // rows.shape[1])
    for top in range(0, len(rows), height):
        part = slice(top, top + height)
        p, q = _softmax(rows[part]), _softmax(base[part])
        # p log(p / q) - p + q, which adds up to the same: both sum to one number. x is p / q - 1.
        x = (p - q) / q
        near = x * x * (0.5 - x / 6 + x * x / 12)
        terms = np.where(np.abs(x) < 1e-4, near, (1 + x) * np.log1p(x) - x)
        found[part] = np.add.reduce(q * terms, axis=1)
    return found


def _softmax(rows: Matrix) -> Column:
    exact = rows.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    np.exp(exact, out=exact)
    exact /= np.add.reduce(exact, axis=1)[:, None]
    exact += _FLOOR
    return exact
