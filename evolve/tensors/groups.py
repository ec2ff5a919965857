"""Distributions over other entries than a softmax has: summed by groups, sorted, one event and the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from evolve.tensors.divergence import LOWEST


def grouped_log_sum(log_q: Tensor, group: Tensor, size: int) -> Tensor:
    """Return the log-probability of each group of entries, exact also where it is small.

    Args:
        log_q: (n, V), finite.
        group: int64, (V,), from 0 to ``size`` - 1; -1 leaves an entry out.
        size: Number of groups.

    Returns:
        (n, size); ``LOWEST`` for a group without entries.
    """
    inside = group >= 0
    where = torch.where(inside, group, size).expand_as(log_q)
    largest = log_q.new_full((len(log_q), size + 1), LOWEST)
    largest = largest.scatter_reduce(1, where, log_q.detach(), "amax")
    scaled = (log_q - largest.gather(1, where)).exp()
    sums = torch.zeros_like(largest).scatter_add(1, where, scaled)[:, :size]
    # A group without entries: the logarithm of 0 would have a gradient that is no number.
    filled = sums > 0
    found = largest[:, :size] + torch.where(filled, sums, 1.0).log()
    return torch.where(filled, found, LOWEST).clamp(min=LOWEST)


def event_buckets(log_a: Tensor) -> Tensor:
    """Return the log-probabilities of an event and of its opposite, (n, 2).

    Args:
        log_a: (n,); at most 0, up to rounding. The opposite has at least what the type can tell from nothing.
    """
    eps = torch.finfo(log_a.dtype).eps
    inside = log_a.clamp(min=LOWEST, max=-eps)
    # log(1 - e^x): by expm1 near 0, by log1p far from it.
    near = inside > -0.6931
    opposite = torch.where(
        near,
        (-torch.expm1(torch.where(near, inside, -1.0))).log(),
        torch.log1p(-torch.where(near, -1.0, inside).exp()),
    )
    return torch.stack([inside, opposite], dim=-1)


def sorted_pair(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with their entries in descending order, the shorter one filled with ``LOWEST``.

    Total variation of these is half of universal logit distillation's loss (Boizard et al. 2024,
    arXiv:2402.12030): the Wasserstein distance with one price for moving probability between any two tokens.

    Args:
        log_p: (n, V).
        log_q: (n, W).

    Returns:
        Each (n, max(V, W)).
    """
    first, second = (one.sort(dim=-1, descending=True).values for one in (log_p, log_q))
    width = max(first.shape[-1], second.shape[-1])
    return _filled(first, width), _filled(second, width)


def _filled(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[-1]), value=LOWEST)
