"""How far a student is from its teacher: the true divergence and the agreement, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evolve.stages.distill.signals import TopK, places
from evolve.tensors.chunked import chunk_rows
from evolve.tensors.divergence import forward_kl, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.distill.signals import Signals
    from evolve.tensors.logits import Head, Logits


class Distance(NamedTuple):
    """Of the n tokens that count, in the order of the batch.

    Attributes:
        kl: float32, (n,); ``KL(p || q)`` of the teacher p and the student q at temperature 1, in nats.
        agrees: bool, (n,); whether both have the same most likely token.
        rows: int64, (n,); the place in batch times length that predicts each.
    """

    kl: Tensor
    agrees: Tensor
    rows: Tensor


def kl_to(teacher: Signals, student: Signals, labels: Tensor, *, vocabulary: int) -> Distance:
    """Return the distance of a student to a teacher over a batch, without a gradient.

    Args:
        teacher: Logits, or hidden states with a head; k best tokens would only give a bound, and are refused.
        student: The same over the same tokens, on the same device.
        labels: int64, (batch, length); -100 where a token does not count.
        vocabulary: Number of real tokens; what is behind is padding and cut off both.

    Raises:
        ValueError: The signals do not fit each other, or are k best tokens.
    """
    import torch

    theirs, ours = _whole(teacher, "teacher"), _whole(student, "student")
    if theirs.shape != ours.shape or ours.shape != tuple(labels.shape):
        raise ValueError(f"scores for {theirs.shape} and {ours.shape} tokens, labels {tuple(labels.shape)}")
    if vocabulary > min(theirs.vocabulary, ours.vocabulary):
        raise ValueError(f"{vocabulary} tokens, but {theirs.vocabulary} and {ours.vocabulary} logits")
    rows = places(labels).rows
    kl = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
    agrees = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    step = chunk_rows(vocabulary)
    with torch.no_grad():
        for begin in range(0, len(rows), step):
            some = rows[begin : begin + step]
            log_p, log_q = (
                log_probabilities(one.finish(one.raw(some, vocabulary))) for one in (theirs, ours)
            )
            kl[begin : begin + step] = forward_kl(log_p, log_q)
            agrees[begin : begin + step] = log_p.argmax(-1) == log_q.argmax(-1)
    return Distance(kl, agrees, rows)


def _whole(signals: Signals, side: str) -> Logits | Head:
    if signals.scores is None or isinstance(signals.scores, TopK):
        raise ValueError(f"the {side}'s whole distribution is needed, not its k best tokens")
    return signals.scores
