"""The k most probable entries of a distribution, and one bucket for all others.

A teacher behind a server gives the log-probabilities of its k best tokens alone. Both distributions are then
put into k + 1 buckets: each of the k tokens, and the rest together. By the data-processing inequality any
divergence between the buckets is at most the divergence between the whole distributions, and it is 0 where
those are equal. Renormalising the k instead would be biased, and at k = 1 without any gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evolve.tensors.divergence import LOWEST, wide


def teacher_buckets(log_p: Tensor, vocabulary: int) -> Tensor:
    """Return the log-probabilities of the k tokens and, last, of all others.

    Args:
        log_p: (..., k); -inf where a row has fewer than k tokens.
        vocabulary: Number of tokens there are. With all of them given there is no rest, and no bucket for
            it. Otherwise the rest is at least what the type of ``log_p`` can tell from nothing: 1.2e-7 in
            float32.

    Returns:
        (..., k + 1), or (..., k) without a rest; float32, or float64 for float64.
    """
    values = wide(log_p).clamp(min=LOWEST)
    if values.shape[-1] >= vocabulary:
        return values
    # A rest that rounding has swallowed is not nothing: a reverse KL would make 100,000 nats of that.
    rest = (1 - values.exp().sum(-1, keepdim=True)).clamp(min=torch.finfo(log_p.dtype).eps)
    return torch.cat([values, rest.log()], dim=-1)


def student_buckets(log_q: Tensor, tokens: Tensor, given: Tensor) -> Tensor:
    """Return the student's log-probabilities in the same buckets.

    The rest is the log-sum of what is in it, not one minus the others: exact also where it is small.

    Args:
        log_q: (..., V), float32 or float64.
        tokens: int64, (..., k), different ones in each row, where ``given``; anything elsewhere.
        given: bool, (..., k): False where the teacher has no token at this place.

    Returns:
        (..., k + 1), or (..., k) for k = V.
    """
    vocabulary = log_q.shape[-1]
    picked = log_q.gather(-1, torch.where(given, tokens, 0))
    values = torch.where(given, picked, LOWEST)
    if tokens.shape[-1] >= vocabulary:
        return values
    # One more column, which takes the places without a token.
    taken = torch.zeros((*log_q.shape[:-1], vocabulary + 1), dtype=torch.bool, device=log_q.device)
    taken.scatter_(-1, torch.where(given, tokens, vocabulary), True)
    rest = torch.logsumexp(log_q.masked_fill(taken[..., :vocabulary], LOWEST), dim=-1, keepdim=True)
    return torch.cat([values, rest.clamp(min=LOWEST)], dim=-1)
