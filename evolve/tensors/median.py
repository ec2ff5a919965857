"""The geometric median: the point whose distances to the models have the smallest sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from evolve.tensors.blocks import BLOCK, blocks, flat
from evolve.tensors.interpolate import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

# As a share of all weights: a pull that is this close to a point's own weight holds it.
_BALANCE = 1e-9
# As a share of the way by which a place is reckoned from a point: closer than this it is that point.
_MET = 1e-7
_HALVINGS = 12


def geometric_median(
    tensors: Sequence[Tensor], weights: Sequence[float], *, max_iter: int = 100, tol: float = 1e-8
) -> Tensor:
    """Return the point y that minimises ``sum(weight * |tensor - y|)``, each tensor taken as one vector.

    Weiszfeld's iteration with the correction of Vardi and Zhang (2000, PNAS 97(4):1423-1426) where it meets
    one of the points; robust aggregation is Pillutla et al., arXiv:1912.13445. Where Newton's step leads
    further down it is taken instead: close to a point Weiszfeld's steps are endlessly short. A point that is
    the median is returned as it is. Where a whole segment is (two models of one weight), the point of it that
    is closest to the weighted mean is returned. All steps are done on the distances between the tensors, in
    float64.

    Args:
        tensors: float32, all of one shape, at least one.
        weights: One per tensor, not negative, not all zero.
        max_iter: Most iterations.
        tol: Stop at a step shorter than this share of the mean distance.
    """
    shares = median_shares(squared_distances(tensors), weights, max_iter=max_iter, tol=tol)
    return weighted_sum(tensors, [float(share) for share in shares])


def squared_distances(tensors: Sequence[Tensor]) -> Matrix:
    """Return the squared Euclidean distance of each pair of tensors, in float64."""
    sources = [flat(tensor) for tensor in tensors]
    count = len(sources)
    squared = np.zeros((count, count))
    scratch = np.empty(BLOCK)
    for part in blocks(sources[0].size):
        wide = [source[part].astype(np.float64) for source in sources]
        gap = scratch[: wide[0].size]
        for row in range(count):
            for column in range(row):
                np.subtract(wide[row], wide[column], out=gap)
                squared[row, column] += np.add.reduce(np.square(gap, out=gap))
    return squared + squared.T


def median_shares(squared: Matrix, weights: Sequence[float], *, max_iter: int, tol: float) -> Matrix:
    """Return the shares of the points, which sum to 1, that make up their geometric median.

    Args:
        squared: Squared distance of each pair of points.
        weights: One per point, not negative, not all zero.
        max_iter: Most iterations.
        tol: Stop at a step shorter than this share of the mean distance.
    """
    given = np.asarray(weights, np.float64)
    result = np.zeros(len(given))
    # Equal points act as one with the sum of their weights, and what has no weight does not act at all.
    active = np.flatnonzero(given > 0)
    heads = np.array([active[np.flatnonzero(squared[point, active] == 0)[0]] for point in active])
    points = np.unique(heads)
    weight = np.array([given[active[heads == point]].sum() for point in points])
    with np.errstate(all="ignore"):  # NaN and infinity in a model go through to the result
        result[points] = _distinct(squared[np.ix_(points, points)], weight, max_iter, tol)
    return result


def _distinct(squared: Matrix, weight: Matrix, max_iter: int, tol: float) -> Matrix:
    """Return the shares for points that all differ and that all have a weight."""
    count = len(weight)
    mean = weight / weight.sum()
    if count == 1:
        return np.ones(1)
    distance = np.sqrt(squared)
    pulls = np.array([_pull(squared, distance, weight, point) for point in range(count)])
    slack = _BALANCE * weight.sum()
    held = np.flatnonzero(pulls <= weight + slack)
    if held.size:
        best = int(held[np.argmin(pulls[held] - weight[held])])
        if held.size == 1 or pulls[best] < weight[best] - slack:
            return _unit(count, best)
        return _on_segment(squared, mean, int(held[0]), int(held[1]))
    return _descend(squared, weight, pulls, max_iter, tol)


def _descend(squared: Matrix, weight: Matrix, pulls: Matrix, max_iter: int, tol: float) -> Matrix:
    """Go down from the mean. No point is the median."""
    distance = np.sqrt(squared)
    shares: Matrix = weight / weight.sum()
    for _ in range(max_iter):
        here = np.sqrt(np.maximum(_products(squared, shares).diagonal(), 0.0))
        nearest = int(np.argmin(here))
        if here[nearest] <= _MET * (np.abs(shares) @ distance[nearest]):
            # Weiszfeld's formula is 0/0 here: the other points pull against the weight of this one.
            force = np.divide(
                weight, distance[nearest], out=np.zeros_like(weight), where=distance[nearest] > 0
            )
            stay = weight[nearest] / pulls[nearest]
            here, start = distance[nearest], _unit(len(weight), nearest)
            moved: Matrix = (1 - stay) * force / force.sum() + stay * start
        else:
            start, force = shares, weight / here
            found = (force / force.sum(), *_newton(squared, shares, force, here))
            moved = min(found, key=_height(squared, weight))
        step = moved - start
        shares = moved
        length = math.sqrt(max(0.0, float(-(step @ squared @ step) / 2)))
        if length <= tol * float(weight @ here) / float(weight.sum()):
            break
    return shares


def _products(squared: Matrix, shares: Matrix) -> Matrix:
    """Return the inner products of the vectors from the points to where the shares are."""
    # Seen from the closest point: there the squares of distances are no differences of large numbers.
    origin = int(np.argmin(squared @ shares))
    apart = squared[origin]
    inner = (apart[:, None] + apart[None, :] - squared) / 2
    arms = shares[None, :] - np.eye(len(shares))
    products: Matrix = arms @ inner @ arms.T
    return products


def _height(squared: Matrix, weight: Matrix) -> Callable[[Matrix], float]:
    """Return the sum of the weighted distances as a function of the shares."""
    return lambda shares: float(weight @ np.sqrt(np.maximum(_products(squared, shares).diagonal(), 0.0)))


def _newton(squared: Matrix, shares: Matrix, force: Matrix, here: Matrix) -> tuple[Matrix, ...]:
    """Return where Newton's step and shorter ones lead, or nothing where there is none.

    With the vectors Z from the points, slope Z a and curvature A - Z C Z', the step is Z b, where
    (A - C Z'Z) b = -a.
    """
    products = _products(squared, shares)
    curve = force.sum() * np.eye(len(shares)) - (force / here**2)[:, None] * products
    try:
        step = -np.linalg.solve(curve, force)
    except np.linalg.LinAlgError:
        return ()
    step = step.sum() * shares - step
    return (
        tuple(shares + step / 2**halvings for halvings in range(_HALVINGS)) if np.isfinite(step).all() else ()
    )


def _pull(squared: Matrix, distance: Matrix, weight: Matrix, point: int) -> float:
    """Return the length of the sum of the unit vectors from one point to the others, times their weights."""
    others = np.arange(len(weight)) != point
    force = weight[others] / distance[point, others]
    apart = squared[point, others]
    products = (apart[:, None] + apart[None, :] - squared[np.ix_(others, others)]) / 2
    total = force @ products @ force
    return float(total) if np.isnan(total) else float(np.sqrt(max(0.0, total)))


def _on_segment(squared: Matrix, mean: Matrix, first: int, second: int) -> Matrix:
    """Return the point between two points that is closest to the mean of all."""
    length = squared[first, second]
    along = mean @ (squared[:, first] + length - squared[:, second]) / (2 * length)
    share = float(np.clip(along, 0.0, 1.0))
    return (1 - share) * _unit(len(mean), first) + share * _unit(len(mean), second)


def _unit(count: int, place: int) -> Matrix:
    unit: Matrix = np.eye(count)[place]
    return unit
