"""The methods beyond mergekit's once more: in float64, written from the papers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Array = np.ndarray[Any, np.dtype[np.float64]]


def uniform_soup(models: Sequence[Array]) -> Array:
    return np.stack(models).sum(0) / len(models)


def wise_ft(base: Array, model: Array, alpha: float) -> Array:
    return (1 - alpha) * base + alpha * model


def sum_of_distances(point: Array, points: Array, weights: Array) -> float:
    return float(weights @ np.sqrt(((points - point) ** 2).sum(1)))


def geometric_median(points: Array, weights: Array) -> Array:
    """Minimise the sum of smoothed distances by Newton's method, with less and less smoothing."""
    scale = max(1e-300, float(np.abs(points - points.mean(0)).max()))
    x = (points - points.mean(0)) / scale
    y = (weights @ x) / weights.sum()
    for exponent in range(1, 12):
        smooth = 10.0**-exponent
        for _ in range(100):
            gap = y - x
            size = np.sqrt((gap**2).sum(1) + smooth**2)
            slope = (weights / size) @ gap
            curve = np.eye(len(y)) * (weights / size).sum() - (gap.T * (weights / size**3)) @ gap
            step = np.linalg.lstsq(curve, slope, rcond=None)[0]
            if np.abs(step).max() < 1e-14:
                break
            value, share = weights @ size, 1.0
            while (
                share > 1e-10 and weights @ np.sqrt(((y - share * step - x) ** 2).sum(1) + smooth**2) > value
            ):
                share /= 2
            y = y - share * step
    # The smoothed minimum is off by the last smoothing; a point that is as good is the exact one.
    values = [sum_of_distances(one, x, weights) for one in x]
    best = int(np.argmin(values))
    if values[best] <= sum_of_distances(y, x, weights) + 1e-12:
        y = x[best]
    return y * scale + points.mean(0)


def tsv(deltas: Sequence[Array], share: float | None = None) -> Array:
    """TSV-Merge of matrices of full rank: truncate, concatenate, whiten by Procrustes, put together."""
    short = min(deltas[0].shape)
    k = short // len(deltas) if share is None else int(share * short)
    left, values, right = [], [], []
    for delta in deltas:
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        left.append(u[:, :k])
        values.append(s[:k])
        right.append(vt[:k].T)

    def closest(columns: Array) -> Array:
        p, _, qt = np.linalg.svd(columns, full_matrices=False)
        return p @ qt

    return closest(np.hstack(left)) @ np.diag(np.hstack(values)) @ closest(np.hstack(right)).T


def fisher(models: Sequence[Array], fishers: Sequence[Array], weights: Sequence[float]) -> Array:
    above = sum(w * f * m for w, f, m in zip(weights, fishers, models, strict=True))
    below = sum(w * f for w, f in zip(weights, fishers, strict=True))
    return np.asarray(above) / np.asarray(below)


def regmean(
    matrices: Sequence[Array], grams: Sequence[Array], weights: Sequence[float], alpha: float
) -> Array:
    """Matrices of shape (in, out)."""
    shrunk = [alpha * g + (1 - alpha) * np.diag(np.diag(g)) for g in grams]
    left = sum(w * g for w, g in zip(weights, shrunk, strict=True))
    right = sum(w * g @ m for w, g, m in zip(weights, shrunk, matrices, strict=True))
    return np.asarray(np.linalg.solve(np.asarray(left), np.asarray(right)))
