"""Divergences between two distributions over the same entries, one number a token.

p is the teacher's distribution, q the student's. Everything is given as log-probabilities in float32 or
float64 along the last axis, and worked on in that type; nothing here knows of temperatures or masks. The
gradient is autograd's: no function makes a NaN of finite inputs, in its value or in its gradient.

The definitions are those of GKD (Agarwal et al. 2024, arXiv:2306.13649) and DistiLLM (Ko et al. 2024,
arXiv:2402.03898). ``forward_kl`` is the true divergence, with the teacher's entropy in it: 0 where the two
are equal, and comparable between teachers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST = -1e5
"""Log-probabilities are not smaller than this: a probability of zero times its logarithm is then zero."""


def wide(values: Tensor) -> Tensor:
    """Return float64 as it is, everything else as float32."""
    return values if values.dtype == torch.float64 else values.float()


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``log softmax(logits / temperature)`` along the last axis, not smaller than ``LOWEST``.

    Args:
        logits: Any floating type; finite or -inf, and in each row one that is finite.
        temperature: Above 0.

    Returns:
        float32, or float64 for float64.
    """
    values = wide(logits)
    if temperature != 1.0:
        values = values / temperature
    found = torch.log_softmax(values, dim=-1)
    # In its own memory where autograd does not need the unclamped values.
    return found.clamp(min=LOWEST) if found.requires_grad else found.clamp_(min=LOWEST)


def log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """Return ``log(share * a + (1 - share) * b)`` without leaving the logarithms.

    Args:
        log_a: Finite.
        log_b: Of the same shape.
        share: From 0 to 1.
    """
    if share == 0:
        return log_b
    if share == 1:
        return log_a
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``KL(p || q) = sum p (log p - log q)``: the student must cover what the teacher does.

    Args:
        log_p: The teacher's, (..., V).
        log_q: The student's, of the same shape.

    Returns:
        One value for each row, (...).
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``KL(q || p)``: the student does nothing that the teacher does not. See :func:`forward_kl`."""
    return forward_kl(log_q, log_p)


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Return ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``.

    It vanishes towards both ends: divided by beta it goes to KL(p || q) for small beta, divided by 1 - beta
    to KL(q || p) for large beta.

    Args:
        log_p: The teacher's, (..., V).
        log_q: The student's, of the same shape.
        beta: Above 0 and below 1. (TRL takes the ends for the two KLs; those have functions of their own.)

    Returns:
        One value for each row, (...).
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta must lie between 0 and 1, got {beta}; at the ends use the KL of that direction"
        )
    log_m = log_mixture(log_p, log_q, beta)
    return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)


def skew_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """Return ``KL(p || alpha p + (1 - alpha) q)``, DistiLLM's; KL(p || q) at alpha = 0, and 0 at 1."""
    return forward_kl(log_p, log_mixture(log_p, log_q, alpha))


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    """Return ``KL(q || (1 - alpha) p + alpha q)``, DistiLLM's; KL(q || p) at alpha = 0, and 0 at 1."""
    return forward_kl(log_q, log_mixture(log_q, log_p, alpha))


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``sum |p - q| / 2``, from 0 to 1: one minus the acceptance rate of speculative sampling."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def cross_entropy(log_q: Tensor, labels: Tensor) -> Tensor:
    """Return ``-log q[label]``.

    Args:
        log_q: The student's, (..., V).
        labels: int64, (...), each a place of the last axis.
    """
    return -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
