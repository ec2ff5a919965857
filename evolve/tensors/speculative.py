"""What a draft model saves in speculative decoding: pure formulas.

p is the target's distribution over the next token, q the draft's, both at the temperature of decoding. A
drafted token x is accepted with probability min(1, p(x) / q(x)); after a rejection the target's remainder
max(p - q, 0) gives the token, after k acceptances the target gives one more (Leviathan et al. 2023,
arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318). What comes out is distributed as p alone.

A draft that proposes its most likely token (vLLM's default) is the same with q all on that token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def acceptance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``sum min(p, q)``, the probability that one drafted token is accepted: 1 minus total variation.

    Args:
        log_p: The target's log-probabilities, (..., V).
        log_q: The draft's, of the same shape.

    Returns:
        (...), from 0 to 1.
    """
    import torch

    return torch.minimum(log_p.exp(), log_q.exp()).sum(-1)


def greedy_acceptance(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``p(argmax q)``: the same for a draft that proposes its most likely token."""
    return log_p.gather(-1, log_q.argmax(-1, keepdim=True)).squeeze(-1).exp()


def accepted_share(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return how often a token of the output was drafted, given that it is there: ``min(1, q / p)``.

    With q all on one token this is 1 where the output is that token, else 0.

    Args:
        log_p: The target's log-probability of the tokens that came, (...).
        log_q: The draft's of the same tokens.
    """
    return (log_q - log_p).clamp(max=0).exp()


def expected_length(alpha: float, k: int) -> float:
    """Return the tokens of a cycle, ``(1 - alpha^(k+1)) / (1 - alpha)``, where every token has one rate.

    Leviathan et al. 2023, equation 1. Real rates differ from token to token; see :func:`along`.
    """
    return float(k + 1) if alpha >= 1 else (1 - alpha ** (k + 1)) / (1 - alpha)


def speed_up(length: float, k: int, cost: float) -> float:
    """Return how much faster decoding is: ``length / (k c + 1)``.

    Leviathan et al. 2023, theorem 3.8: a cycle is k passes of the draft and one of the target, which is
    taken to cost the same for k + 1 tokens as for one.

    Args:
        length: Tokens of a cycle.
        k: Drafted tokens of a cycle.
        cost: The time of a draft's pass over that of the target's.
    """
    return length / (k * cost + 1)


def break_even(k: int, cost: float) -> float:
    """Return the rate at which :func:`expected_length` just pays for the draft; 1 where none does."""
    wanted = k * cost + 1
    if wanted >= k + 1:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_length(middle, k) < wanted else (low, middle)
    return high


class Decoding(NamedTuple):
    """Speculative decoding of one text, in expectation.

    Attributes:
        tokens: Tokens that came out.
        cycles: Passes of the target.
        accepted: Tokens among them that were drafted.
    """

    tokens: float
    cycles: float
    accepted: float

    @property
    def length(self) -> float:
        """Tokens of a cycle: the mean accepted length, with the target's own token (block efficiency)."""
        return self.tokens / self.cycles if self.cycles else math.nan


def along(shares: Sequence[float], k: int) -> Decoding:
    """Return what decoding a text takes, given the text: exact, and without drawing anything.

    Given what came out, each token was drafted with :func:`accepted_share`, independently, as long as a
    cycle had drafts left. So the expected number of cycles follows by going backwards through the text. Its
    mean over texts of the target is the block efficiency of real decoding; the mean of ``sum min(p, q)``
    over these texts is not, since what is accepted first decides what comes next.

    Args:
        shares: Of every token after the first, which the prompt's own pass gives; each 0 to 1.
        k: Drafted tokens of a cycle, at least 1.
    """
    values = np.asarray(shares, np.float64)
    count = len(values)
    cycles = np.zeros(count + 1)
    accepted = np.zeros(count + 1)
    for start in range(count - 1, -1, -1):
        through, expected, drafted = 1.0, 0.0, 0.0
        for done in range(k + 1):
            place = start + done
            if place == count:
                # The text ends within the cycle: all of its last tokens were drafted.
                drafted += through * done
                through = 0.0
                break
            share = values[place] if done < k else 0.0
            ends = through * (1 - share)
            expected += ends * cycles[place + 1]
            drafted += ends * (done + accepted[place + 1])
            through *= share
        cycles[start] = 1 + expected
        accepted[start] = drafted
    return Decoding(float(count), float(cycles[0]), float(accepted[0]))


def block_lengths(shares: Sequence[float], k: int) -> list[float]:
    """Return for each place the expected tokens of a cycle that begins there: ``1 + sum_j prod share``.

    The text is taken to go on with drafts that are rejected. (The tau of NeMo Automodel.)
    """
    values = np.asarray(shares, np.float64)
    found = []
    for start in range(len(values)):
        found.append(1.0 + float(np.cumprod(values[start : start + k]).sum()))
    return found
