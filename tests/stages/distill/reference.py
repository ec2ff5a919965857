"""Losses and their gradients derived by hand, in float64 and numpy, token by token.

Nothing of evolve or of autograd is used. With q = softmax(z / T) and d = dL/dq, the gradient is
dL/dz = q (d - sum q d) / T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, np.dtype[np.float64]]
POWER = {"cross_entropy": 0, "tvd": 1}


class Derived(NamedTuple):
    value: float
    gradient: Array


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def kl(p: Array, q: Array) -> float:
    found = p > 0
    return float((p[found] * np.log(p[found] / q[found])).sum())


def token(
    name: str, z: Array, teacher: Array | None, label: int, temperature: float, values: Mapping[str, float]
) -> Derived:
    """One token's loss, with its factor of the temperature, and the gradient for z."""
    q = softmax(z / temperature)
    p = q if teacher is None else softmax(teacher / temperature)
    value, d = _in_q(name, p, q, label, values)
    factor = temperature ** POWER.get(name, 2)
    return Derived(factor * value, factor * q * (d - (q * d).sum()) / temperature)


def _in_q(name: str, p: Array, q: Array, label: int, values: Mapping[str, float]) -> tuple[float, Array]:
    """The divergence, and its derivative by each q."""
    if name == "kl":
        return kl(p, q), -p / q
    if name == "reverse_kl":
        return kl(q, p), np.log(q / p) + 1
    if name == "jsd":
        beta = values["beta"]
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m), (1 - beta) * np.log(q / m)
    if name == "skew_kl":
        alpha = values["alpha"]
        m = alpha * p + (1 - alpha) * q
        return kl(p, m), -(1 - alpha) * p / m
    if name == "skew_reverse_kl":
        alpha = values["alpha"]
        m = (1 - alpha) * p + alpha * q
        return kl(q, m), np.log(q / m) + 1 - alpha * q / m
    if name == "tvd":
        return 0.5 * float(np.abs(p - q).sum()), 0.5 * np.sign(q - p)
    assert name == "cross_entropy"
    return -float(np.log(q[label])), np.where(np.arange(len(q)) == label, -1 / q, 0.0)


def batch(
    name: str,
    student: Array,
    teacher: Array,
    labels: np.ndarray[Any, np.dtype[np.int64]],
    *,
    vocabulary: int,
    temperature: float,
    values: Mapping[str, float],
    num_items: int,
) -> Derived:
    """A whole batch, by plain loops: the label at t + 1 belongs to the logits at t."""
    total, gradient = 0.0, np.zeros_like(student)
    for row in range(labels.shape[0]):
        for place in range(labels.shape[1] - 1):
            label = int(labels[row, place + 1])
            if label == -100:
                continue
            one = token(
                name,
                student[row, place, :vocabulary],
                teacher[row, place, :vocabulary],
                label,
                temperature,
                values,
            )
            total += one.value
            gradient[row, place, :vocabulary] = one.gradient
    return Derived(total / max(num_items, 1), gradient / max(num_items, 1))
