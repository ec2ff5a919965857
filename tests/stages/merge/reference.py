"""The merge methods once more: in float64, one element after the other, written from the papers alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Vector = list[float]


def _columns(vectors: Sequence[Vector]) -> list[tuple[float, ...]]:
    return list(zip(*vectors, strict=True))


def _deltas(base: Vector, models: Sequence[Vector]) -> list[Vector]:
    return [[x - b for x, b in zip(model, base, strict=True)] for model in models]


def linear(models: Sequence[Vector], weights: Vector, normalize: bool) -> Vector:
    divisor = math.fsum(weights) if normalize else 1.0
    return [math.fsum(w * x for w, x in zip(weights, xs, strict=True)) / divisor for xs in _columns(models)]


def slerp(base: Vector, model: Vector, t: float) -> Vector:
    norms = math.sqrt(math.fsum(x * x for x in base)), math.sqrt(math.fsum(x * x for x in model))
    cos = math.fsum(x * y for x, y in zip(base, model, strict=True)) / (norms[0] * norms[1])
    if abs(cos) > 0.9995:
        return [(1 - t) * x + t * y for x, y in zip(base, model, strict=True)]
    angle = math.acos(cos)
    a, b = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [a * x + b * y for x, y in zip(base, model, strict=True)]


def add(base: Vector, deltas: Sequence[Vector], weights: Vector, factor: float, normalize: bool) -> Vector:
    divisor = math.fsum(weights) if normalize else 1.0
    return [
        b + factor * math.fsum(w * d for w, d in zip(weights, ds, strict=True)) / divisor
        for b, ds in zip(base, _columns(deltas), strict=True)
    ]


def task_arithmetic(
    base: Vector, models: Sequence[Vector], weights: Vector, factor: float = 1.0, normalize: bool = False
) -> Vector:
    return add(base, _deltas(base, models), weights, factor, normalize)


def trim(delta: Vector, density: float, rescale: bool = False) -> Vector:
    count = max(1, int(density * len(delta))) if density > 0 else 0
    kept = set(sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))[:count])
    result = [d if i in kept else 0.0 for i, d in enumerate(delta)]
    after = math.fsum(map(abs, result))
    scale = math.fsum(map(abs, delta)) / after if rescale and after else 1.0
    return [scale * d for d in result]


def elect(base: Vector, deltas: Sequence[Vector], weights: Vector, factor: float, normalize: bool) -> Vector:
    result = []
    for b, ds in zip(base, _columns(deltas), strict=True):
        terms = [w * d for w, d in zip(weights, ds, strict=True)]
        sign = 1.0 if math.fsum(terms) >= 0 else -1.0
        agree = [i for i, term in enumerate(terms) if term * sign > 0]
        total = math.fsum(terms[i] for i in agree)
        if normalize and agree:
            total /= math.fsum(abs(weights[i]) for i in agree)
        result.append(b + factor * total)
    return result


def ties(
    base: Vector,
    models: Sequence[Vector],
    weights: Vector,
    densities: Vector,
    factor: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,
) -> Vector:
    deltas = [trim(d, p, rescale) for d, p in zip(_deltas(base, models), densities, strict=True)]
    return elect(base, deltas, weights, factor, normalize)


def dare(
    base: Vector,
    models: Sequence[Vector],
    weights: Vector,
    densities: Vector,
    masks: Sequence[Sequence[bool]],
    combine: Callable[..., Vector],
    factor: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,
) -> Vector:
    """``combine`` is :func:`add` or :func:`elect`; ``masks`` say what stays."""
    deltas = [
        [(d / (p if rescale else 1.0)) if stays else 0.0 for d, stays in zip(delta, mask, strict=True)]
        for delta, p, mask in zip(_deltas(base, models), densities, masks, strict=True)
    ]
    return combine(base, deltas, weights, factor, normalize)
