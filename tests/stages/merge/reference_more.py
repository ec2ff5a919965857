"""More merge methods once more: in float64, vector by vector, written from the papers alone.

Arrays are numpy float64; a method that works on rows gets its arrays with their axes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def norm(x: Array) -> float:
    return math.sqrt(math.fsum((x * x).flat))


def dot(x: Array, y: Array) -> float:
    return math.fsum((x * y).flat)


def vectors(shape: tuple[int, ...], along: Literal["all", "rows", "columns"]) -> Iterator[object]:
    """Yield the index of each vector: the whole, or those along the last or the first axis."""
    if along == "all" or len(shape) < 2:
        yield ...
    elif along == "rows":
        yield from np.ndindex(shape[:-1])
    else:
        yield from ((slice(None), *rest) for rest in np.ndindex(shape[1:]))


def arc(a: Array, b: Array, t: float) -> Array:
    """Shoemake's formula for two vectors; straight where there is no arc."""
    if norm(a) == 0 or norm(b) == 0:
        return (1 - t) * a + t * b
    cos = min(1.0, max(-1.0, dot(a, b) / norm(a) / norm(b)))
    angle = math.acos(cos)
    if math.sin(angle) < 1e-6:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def nuslerp(
    models: Sequence[Array],
    weights: Sequence[float],
    base: Array | None = None,
    along: Literal["all", "rows", "columns"] = "all",
) -> Array:
    t = weights[1] / (weights[0] + weights[1])
    origin = np.zeros_like(models[0]) if base is None else base
    a, b = (model - origin for model in models)
    result = origin.copy()
    for index in vectors(a.shape, along):
        result[index] += arc(a[index], b[index], t)
    return result


def multislerp(
    models: Sequence[Array], weights: Sequence[float], base: Array | None = None, normalize: bool = True
) -> Array:
    """The steps of the article: to the tangent space at the mean, sum, back by the exponential map."""
    origin = np.zeros_like(models[0]) if base is None else base
    points = [model - origin for model in models]
    w = [weight / math.fsum(weights) for weight in weights] if normalize else list(weights)
    units = [x / norm(x) if norm(x) else x for x in points]
    chord = sum(weight * u for weight, u in zip(w, units, strict=True))
    if norm(chord) < 1e-6 * math.fsum(map(abs, w)):
        return origin + sum(weight * x for weight, x in zip(w, points, strict=True))
    mean = chord / norm(chord)
    tangent = sum(weight * (u - dot(u, mean) * mean) for weight, u in zip(w, units, strict=True))
    back = mean
    if norm(tangent) > 1e-12:
        back = math.cos(norm(tangent)) * mean + math.sin(norm(tangent)) * tangent / norm(tangent)
    return origin + back * math.fsum(weight * norm(x) for weight, x in zip(w, points, strict=True))


def karcher(models: Sequence[Array], max_iter: int = 10, tol: float = 1e-5) -> Array:
    """Gradient descent by the logarithm and exponential maps, on the vectors themselves."""
    size = math.fsum(norm(x) for x in models) / len(models)
    units = [x / norm(x) for x in models if norm(x)]
    if not units:
        return np.zeros_like(models[0])
    point = sum(units) / len(units)
    if norm(point) < max(tol, 1e-6):
        return sum(models) / len(models)
    point = point / norm(point)
    for _ in range(max_iter):
        logs = []
        for u in units:
            across = u - dot(u, point) * point
            angle = math.atan2(norm(across), dot(u, point))
            logs.append(angle * across / norm(across) if norm(across) > 1e-9 else 0 * across)
        step = sum(logs) / len(units)
        if norm(step) <= tol:
            break
        point = math.cos(norm(step)) * point + math.sin(norm(step)) * step / norm(step)
    return size * point


def stay_chances(row: Array, density: float, epsilon: float) -> list[float]:
    """Each element's chance to stay by its rank in the row; of equal ones the first is higher."""
    if density in (0.0, 1.0) or row.size == 1:
        return [density] * row.size
    order = sorted(range(row.size), key=lambda i: (-abs(row[i]), i))
    chances = [0.0] * row.size
    for place, i in enumerate(order):
        rank = row.size - 1 - place
        drop = (1 - density) + epsilon - 2 * epsilon * rank / (row.size - 1)
        chances[i] = 1 - min(1.0, max(0.0, drop))
    return chances


def magprune(
    delta: Array, density: float, epsilon: float, words: Sequence[int], rescale: bool = True
) -> Array:
    """``words`` are the uniform numbers from 0 to 2**32 - 1, one for each element in row-major order."""
    result = np.zeros_like(delta)
    numbers = np.array(words, dtype=np.float64).reshape(delta.shape)
    for index in vectors(delta.shape, "rows"):
        row, out = np.atleast_1d(delta[index]), np.zeros(np.atleast_1d(delta[index]).size)
        chances = stay_chances(row.ravel(), density, epsilon)
        for i, (value, chance, word) in enumerate(
            zip(row.ravel(), chances, np.atleast_1d(numbers[index]).ravel(), strict=True)
        ):
            if word < round(chance * 2**32):
                out[i] = value / chance if rescale else value
        result[index] = out.reshape(delta[index].shape)
    return result


def breadcrumb(delta: Array, density: float, gamma: float, rescale: bool = False) -> Array:
    count = delta.size
    keep = min(count, max(1, int(density * count))) if density > 0 else 0
    top = min(int(gamma * count), count - keep)
    values = delta.ravel()
    order = sorted(range(count), key=lambda i: (-abs(values[i]), i))[top : top + keep]
    result = np.zeros(count)
    result[order] = values[order]
    after = math.fsum(np.abs(result))
    if rescale and after:
        result *= math.fsum(np.abs(values)) / after
    return result.reshape(delta.shape)


def sparse(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    prune: Callable[[int, Array], Array],
    combine: Callable[..., list[float]],
    factor: float = 1.0,
    normalize: bool = False,
) -> Array:
    """``prune`` gets a model's number and task vector; ``combine`` is ``add`` or ``elect`` of reference."""
    deltas = [prune(i, model - base).ravel().tolist() for i, model in enumerate(models)]
    merged = combine(base.ravel().tolist(), deltas, list(weights), factor, normalize)
    return np.array(merged, dtype=np.float64).reshape(base.shape)


def sce(base: Array, models: Sequence[Array], select: float = 1.0) -> Array:
    deltas = [(model - base).ravel() for model in models]
    if select < 1:
        mean = [math.fsum(column) / len(models) for column in zip(*deltas, strict=True)]
        spread = [
            math.fsum((x - m) ** 2 for x in column)
            for column, m in zip(zip(*deltas, strict=True), mean, strict=True)
        ]
        places = [i for i, s in enumerate(spread) if s > 0]
        keep = min(len(places), max(1, int(select * len(places)))) if select > 0 and places else 0
        chosen = set(sorted(places, key=lambda i: (-spread[i], i))[:keep])
        deltas = [np.array([x if i in chosen else 0.0 for i, x in enumerate(delta)]) for delta in deltas]
    energies = [math.fsum(delta * delta) for delta in deltas]
    result = base.ravel().copy()
    for i in range(result.size):
        sign = 1.0 if math.fsum(delta[i] for delta in deltas) >= 0 else -1.0
        agree = [(e, d[i]) for e, d in zip(energies, deltas, strict=True) if d[i] * sign > 0]
        if agree:
            result[i] += math.fsum(e * d for e, d in agree) / math.fsum(e for e, _ in agree)
    return result.reshape(base.shape)


def ram(
    base: Array, models: Sequence[Array], epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.0
) -> Array:
    """With r = 0 this is RAM, otherwise RAM+ with the counts of this tensor."""
    deltas = [(model - base).ravel() for model in models]
    moved = [np.abs(delta) > epsilon for delta in deltas]
    count = sum(m.astype(int) for m in moved)
    factors = []
    for m in moved:
        shared, unique = int((m & (count > 1)).sum()), int((m & (count == 1)).sum())
        factors.append(1 + r * min(max(shared / unique if unique else 0.0, 0.0), alpha))
    result = base.ravel().copy()
    for i in range(result.size):
        here = [j for j, m in enumerate(moved) if m[i]]
        if len(here) == 1:
            result[i] += factors[here[0]] * deltas[here[0]][i]
        elif here:
            result[i] += math.fsum(deltas[j][i] for j in here) / len(here)
    return result.reshape(base.shape)


def model_stock(base: Array, models: Sequence[Array], filter_wise: bool = False) -> Array:
    count = len(models)
    result = base.copy()
    for index in vectors(base.shape, "rows" if filter_wise else "all"):
        deltas = [np.asarray(model[index] - base[index]) for model in models]
        cosines = [
            dot(a, b) / norm(a) / norm(b) if norm(a) and norm(b) else 0.0
            for i, a in enumerate(deltas)
            for b in deltas[i + 1 :]
        ]
        cos = math.fsum(cosines) / len(cosines)
        t = count * cos / (1 + (count - 1) * cos) if cos > 0 else 0.0
        result[index] += min(1.0, max(0.0, t)) * sum(deltas) / count
    return result


def nearswap(base: Array, model: Array, t: float) -> Array:
    """The weight of the model falls with the distance: t / distance, at most 1."""
    distance = np.abs(model - base)
    weight = np.minimum(1.0, np.divide(t, distance, out=np.ones_like(distance), where=distance > 0))
    return weight * model + (1 - weight) * base


def arcee_fusion(base: Array, model: Array) -> Array:
    def softmax(x: Array) -> list[float]:
        powers = [math.exp(v - max(x.ravel())) for v in x.ravel()]
        return [p / math.fsum(powers) + 1e-8 for p in powers]

    importance = np.array(np.abs(model - base))
    for index in vectors(base.shape, "rows"):
        p, q = softmax(np.atleast_1d(model[index])), softmax(np.atleast_1d(base[index]))
        importance[index] *= math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    ordered = sorted(importance.ravel().tolist())
    low, middle, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return np.where(importance >= middle + 1.5 * (high - low), model, base)
