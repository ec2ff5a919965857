"""Schedules of the learning rate that transformers does not have, and lengths that are shares of the steps.

Everything is a pure function of the step; a rate is a factor of the largest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evolve.training.arguments import COOLDOWN, DECAY, Shape


@dataclass(frozen=True)
class Infinite:
    """A schedule that can go on: re-warm, cool down to a rate that is kept, anneal at the end.

    Ibrahim et al. 2024, Simple and scalable strategies to continually pre-train large language models,
    arXiv:2403.08763. A later training goes on from the constant part, whatever its length.

    Attributes:
        warmup: Steps from 0 to the largest rate.
        cooldown: Steps from there to the constant rate.
        decay: Steps of the annealing at the end.
        total: All steps, at least ``warmup + cooldown + decay``.
        constant: The rate between, as a share of the largest, 0 to 1.
        least: The rate at the end, as a share of the largest.
        cooldown_type: The way down to the constant rate.
        decay_type: The way down at the end.
    """

    warmup: int
    cooldown: int
    decay: int
    total: int
    constant: float = 0.5
    least: float = 0.0
    cooldown_type: Shape = "cosine"
    decay_type: Shape = "cosine"

    def __call__(self, step: int) -> float:
        """Return the factor of the learning rate in a step, the first of which is 0."""
        if step < self.warmup:
            return step / self.warmup
        if step < self.warmup + self.cooldown:
            share = (step - self.warmup) / self.cooldown
            return _between(1.0, self.constant, share, self.cooldown_type)
        if step < self.total - self.decay:
            return self.constant
        if step < self.total:
            share = (step - self.total + self.decay) / self.decay
            return _between(self.constant, self.least, share, self.decay_type)
        return self.least


def steps_of_share(value: float, total: int) -> int:
    """Return a number of steps that is given as one, or below 1 as a share of all, rounded up."""
    return math.ceil(value * total) if value < 1 else int(value)


def infinite(
    total: int,
    *,
    warmup: int,
    cooldown: float = COOLDOWN,
    decay: float = DECAY,
    constant: float = 0.5,
    least: float = 0.0,
    cooldown_type: Shape = "cosine",
    decay_type: Shape = "cosine",
) -> Infinite:
    """Return the schedule of so many steps. Where they are too few, the annealing has its steps first.

    Args:
        total: All steps.
        warmup: Steps of the warm-up.
        cooldown: Steps, or below 1 a share of all.
        decay: The same of the annealing.
        constant: See :class:`Infinite`, as the rest.
        least: See there.
        cooldown_type: See there.
        decay_type: See there.
    """
    warm = min(warmup, total)
    last = min(steps_of_share(decay, total), total - warm)
    cool = min(steps_of_share(cooldown, total), total - warm - last)
    return Infinite(warm, cool, last, total, constant, least, cooldown_type, decay_type)


def _between(start: float, end: float, share: float, shape: Shape) -> float:
    """Return the value at a share of the way from start to end."""
    if shape == "linear":
        left = 1.0 - share
    elif shape == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * share))
    else:
        left = 1.0 - math.sqrt(share)
    return end + (start - end) * left
