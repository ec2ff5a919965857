"""The k most likely tokens of a whole distribution, and how much is left, at one or several temperatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evolve.stages.distill.signals import TopK
from evolve.tensors.chunked import chunk_rows
from evolve.tensors.divergence import LOWEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.tensors.logits import Head, Logits


class Best(NamedTuple):
    """The k most likely tokens of n places.

    Attributes:
        tokens: int64, (n, k), the most likely first.
        log_p: float32, (n, k), at temperature 1; -inf where there are fewer.
        odds: float32, (n, temperatures): ``log(r / (1 - r))`` of the probability r of all other tokens; -inf
            where there are none. Both a small rest and a small sum of the k keep their digits.
    """

    tokens: Tensor
    log_p: Tensor
    odds: Tensor


def best_of(
    scores: Logits | Head | TopK, rows: Tensor, k: int, temperatures: Sequence[float], vocabulary: int
) -> Best:
    """Return the k best tokens of some places.

    Args:
        scores: Of a batch.
        rows: int64, (n,), places in batch times length.
        k: At most the vocabulary is taken.
        temperatures: At which the rest is wanted.
        vocabulary: Number of real tokens; what is behind is padding.

    Raises:
        ValueError: Scores that are k best tokens themselves are of another temperature, or fewer.
    """
    import torch

    if isinstance(scores, TopK):
        return _of_top_k(scores, rows, k, temperatures, vocabulary)
    size = min(vocabulary, scores.vocabulary)
    k = min(k, size)
    parts = []
    with torch.no_grad():
        step = chunk_rows(size)
        for begin in range(0, max(1, len(rows)), step):
            chosen = rows[begin : begin + step]
            logits = scores.finish(scores.raw(chosen, size)).float()
            values, tokens = logits.topk(k, dim=-1)
            log_p = values - logits.logsumexp(dim=-1, keepdim=True)
            others = logits.scatter(1, tokens, float("-inf"))
            odds = [(others / t).logsumexp(dim=-1) - (values / t).logsumexp(dim=-1) for t in temperatures]
            parts.append(Best(tokens, log_p, torch.stack(odds, dim=-1)))
    return Best(*(torch.cat(one) for one in zip(*parts, strict=True)))


def tempered(log_p: Tensor, odds: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities of the k best tokens at a temperature.

    A tail cannot be tempered, so its weight at this temperature must be known.

    Args:
        log_p: (n, k), at temperature 1 up to a constant of each row; -inf where there is no token.
        odds: (n,), of the rest at ``temperature``; see :class:`Best`.
        temperature: Above 0.

    Returns:
        (n, k); together with the rest they are 1.
    """
    import torch

    scaled = log_p / temperature
    kept = -torch.nn.functional.softplus(odds)
    return scaled - scaled.logsumexp(dim=-1, keepdim=True) + kept.unsqueeze(-1)


def _of_top_k(scores: TopK, rows: Tensor, k: int, temperatures: Sequence[float], vocabulary: int) -> Best:
    import torch

    if set(temperatures) != {1.0} or scores.temperature != 1.0:
        raise ValueError("this teacher gives its k best tokens at temperature 1 alone")
    k = min(k, vocabulary)
    tokens, log_p = (part.flatten(0, 1)[rows] for part in (scores.tokens, scores.log_p))
    if tokens.shape[-1] < k:
        raise ValueError(f"the teacher gives {tokens.shape[-1]} tokens, {k} are wanted")
    log_p, order = log_p.float().sort(dim=-1, descending=True, stable=True)
    tokens, log_p = tokens.gather(1, order)[:, :k], log_p[:, :k]
    if k == vocabulary:
        return Best(tokens, log_p, log_p.new_full((len(rows), 1), float("-inf")))
    kept = log_p.double().clamp(min=LOWEST).exp().sum(dim=-1)
    # What float32 log-probabilities can tell from nothing.
    rest = (1 - kept).clamp(min=torch.finfo(torch.float32).eps)
    return Best(tokens, log_p, (rest / kept).log().float().unsqueeze(-1))
