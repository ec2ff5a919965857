"""Learning rates over the steps: those of transformers by their names, and an infinite one.

The infinite schedule (Ibrahim et al. 2024, Simple and scalable strategies to continually pre-train large
language models, arXiv:2403.08763) warms up, cools down to a constant rate, keeps it for as long as there is
data, and anneals at the end; a later training can go on from the constant part without warming up again.
"""

from __future__ import annotations

import math

INFINITE = "infinite"


def infinite(
    step: int,
    total: int,
    *,
    warmup_steps: int,
    cooldown: float = 0.6,
    constant: float = 0.3,
    annealing: float = 0.1,
    minimum: float = 0.0,
) -> float:
    """Return the factor of the largest learning rate at a step.

    Args:
        step: From 0 to ``total``.
        total: All steps.
        warmup_steps: From 0 to the largest rate, in a straight line.
        cooldown: Share of the steps after which the rate has fallen to ``constant``, along a cosine.
        constant: The rate that is kept, as a share of the largest.
        annealing: Share of the steps at the end in which the rate falls exponentially to ``minimum``.
        minimum: The last rate as a share of the largest; 0 means a hundredth of ``constant``.
    """
    begin, last = max(warmup_steps, round(cooldown * total)), total - round(annealing * total)
    begin = min(begin, last)
    if step < warmup_steps:
        return step / warmup_steps
    if step < begin:
        share = (step - warmup_steps) / (begin - warmup_steps)
        return constant + (1 - constant) * (1 + math.cos(math.pi * share)) / 2
    if step < last or last == total:
        return constant
    low = minimum or constant / 100
    return constant * math.exp(math.log(low / constant) * min(1.0, (step - last) / (total - last)))


def arguments(
    name: str, total: int, warmup_steps: int, kwargs: dict[str, float] | None = None
) -> dict[str, float]:
    """Return what transformers' scheduler of this name needs beside the steps, absent ones filled in.

    ``warmup_stable_decay`` decays over the last fifth where nobody says otherwise.
    """
    found = dict(kwargs or {})
    if name == "warmup_stable_decay":
        found.setdefault("num_decay_steps", min(round(0.2 * total), total - warmup_steps))
    return found
