"""Directions of tensors: points on a sphere, their arcs and their means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evolve.tensors.rows import combine, dots, inverse, lengths, matrix, sum_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.tensors.rows import Column, Matrix

# The direction of a float32 vector is known to about 1e-7. An arc whose angle has a smaller sine than this is
# a straight line, or without a direction between opposite ends; a sum of unit vectors (relative to their
# weights) that is shorter is what rounding has left of directions that cancel out.
_ROUNDING = 1e-6


def arc(
    first: Tensor, second: Tensor, t: float, *, axis: int | None = None, start: Tensor | None = None
) -> Tensor:
    """Return ``start`` plus the point at ``t`` of the arc from ``first`` to ``second`` (Shoemake 1985).

    Lengths are interpolated with the directions. Vectors of the same or opposite directions, and pairs of
    which one is zero and has none, are interpolated in a straight line.

    Args:
        first: float32.
        second: Of the same shape.
        t: 0 for ``first``, 1 for ``second``; outside, the arc goes on.
        axis: 0 or -1: the vectors along this axis are interpolated one by one. None: the whole tensor is one.
        start: Of the same shape; None for zero.
    """
    if axis == 0 and first.ndim >= 2:
        one, two = (tensor.movedim(0, -1).contiguous() for tensor in (first, second))
        origin = None if start is None else start.movedim(0, -1).contiguous()
        return arc(one, two, t, axis=-1, start=origin).movedim(-1, 0).contiguous()
    whole = axis is None
    weights = _arc_weights(matrix(first, whole=whole), matrix(second, whole=whole), t)
    return combine([first, second], weights, start=start, whole=whole)


def _arc_weights(first: Matrix, second: Matrix, t: float) -> tuple[Column, Column]:
    sizes = lengths(first), lengths(second)
    one, two = (inverse(size) for size in sizes)
    # Half the angle from its sine and its cosine: exact also for nearly the same and nearly opposite ones.
    half = sum_lengths([first, second], [one, -two]) / 2, sum_lengths([first, second], [one, two]) / 2
    angle = 2 * np.arctan2(*half)
    sine = 2 * half[0] * half[1]
    straight = (sizes[0] == 0) | (sizes[1] == 0) | (sine <= _ROUNDING)
    sine[straight] = 1
    return (
        np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine),
        np.where(straight, t, np.sin(t * angle) / sine),
    )


def chordal_mean(
    tensors: Sequence[Tensor], weights: Sequence[float], *, eps: float = 0.0, start: Tensor | None = None
) -> Tensor:
    """Return ``start`` plus the mean direction of the tensors times their mean length.

    The direction is that of the weighted sum of the unit vectors: the point of the sphere that is nearest to
    their mean. The length is the weighted sum of the lengths. A zero tensor has no direction and counts with
    its length. Where the unit vectors cancel out, the result is the weighted sum of the tensors.

    Args:
        tensors: float32, all of one shape, at least one; each is one vector.
        weights: One per tensor.
        eps: Length of the weighted sum of the unit vectors up to which they cancel out. A millionth of
            the weights, the size of rounding errors, is the least.
        start: Of the same shape; None for zero.
    """
    vectors = [matrix(tensor) for tensor in tensors]
    sizes = [lengths(vector) for vector in vectors]
    shares = [weight * inverse(size) for weight, size in zip(weights, sizes, strict=True)]
    chord = float(sum_lengths(vectors, shares)[0])
    if not chord > max(eps, _ROUNDING * sum(abs(weight) for weight in weights)):
        return combine(tensors, [np.array([float(weight)]) for weight in weights], start=start)
    size = math.fsum(weight * length[0] for weight, length in zip(weights, sizes, strict=True))
    return combine(tensors, [share * (size / chord) for share in shares], start=start)


def karcher_mean(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Return the Karcher mean of the tensors' directions times the mean of their lengths.

    The Karcher (Riemannian) mean minimizes the sum of the squared angles (Karcher 1977). Every point on the
    way to it is a sum of the tensors, so the iterations run over their coefficients and cost nothing. A zero
    tensor has no direction and counts with its length. Directions that cancel out have no such mean, and the
    result is the average of the tensors.

    Args:
        tensors: float32, all of one shape, at least one; each is one vector.
        max_iter: Most iterations.
        tol: The iterations end when a step is not longer than this angle.
    """
    vectors = [matrix(tensor) for tensor in tensors]
    products = dots(vectors)
    sizes = np.sqrt(np.diag(products))
    units = inverse(sizes)
    found = sizes != 0
    cosines = (products * units * units[:, None])[np.ix_(found, found)]
    point = _karcher_point(cosines, max_iter, tol) if found.any() else None
    shares = np.full(len(tensors), 1 / len(tensors))
    if point is not None:
        shares[:] = 0
        shares[found] = point
        shares *= units * (math.fsum(sizes) / len(tensors))
    return combine(tensors, list(shares[:, None]))


def _karcher_point(cosines: Column, max_iter: int, tol: float) -> Column | None:
    """Return the mean as coefficients of the unit vectors; None where these cancel out."""
    count = len(cosines)
    point = np.full(count, 1 / count)
    size = _size(point, cosines)
    if size <= max(tol, _ROUNDING):
        return None
    point /= size
    for _ in range(max_iter):
        cos = np.clip(np.add.reduce(cosines * point, axis=1), -1, 1)
        sine = np.sqrt(1 - cos * cos)
        # The angle over its sine; 1 where both vanish, and no pull from the opposite point, which has none.
        pull = np.divide(np.arccos(cos), sine, out=np.where(cos > 0, 1.0, 0.0), where=sine > _ROUNDING)
        step = (pull - np.add.reduce(pull * cos) * point) / count
        angle = _size(step, cosines)
        if not angle > tol:
            break
        point = math.cos(angle) * point + (math.sin(angle) / angle) * step
        point /= _size(point, cosines)
    return point


def _size(coefficients: Column, products: Column) -> float:
    """Return the length of a sum of vectors, given their dot products."""
    square = np.add.reduce(coefficients * np.add.reduce(products * coefficients, axis=1))
    return math.sqrt(max(float(square), 0.0))


def stock_ratio(vectors: Sequence[Matrix]) -> Column:
    """Return, for each row, how far Model Stock goes from the base to the average (Jang et al. 2024).

    With N task vectors and the mean cosine c of their pairs it is ``N c / (1 + (N - 1) c)``, and 0 where
    c is not positive. Between a zero vector and any other the cosine counts as 0.

    Args:
        vectors: Task vectors, one matrix (:func:`~evolve.tensors.rows.matrix`) a model, at least two.

    Returns:
        Numbers from 0 to 1.
    """
    count = len(vectors)
    sizes = [lengths(vector) for vector in vectors]
    present = sum((size != 0).astype(np.float64) for size in sizes)
    # The square of the sum of unit vectors is their number plus the cosines of all ordered pairs.
    chord = sum_lengths(vectors, [inverse(size) for size in sizes])
    cosine = (np.square(chord) - present) / (count * (count - 1))
    # Comparisons with NaN are false: what is not finite goes on into the result.
    cosine[cosine <= 0] = 0
    ratio: Column = np.minimum(count * cosine / (1 + (count - 1) * cosine), 1.0)
    return ratio
