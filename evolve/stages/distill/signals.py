"""What a loss gets of a model: scores over the vocabulary, hidden states, attention maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.tensors.logits import Head, Logits

IGNORED = -100
"""The label of a token that does not count."""


@dataclass(frozen=True)
class TopK:
    """What a served or captured teacher knows: its k best tokens at each place.

    They are aligned as logits are: place t holds the distribution of token t + 1. (A server's
    ``prompt_logprobs`` are aligned with the token itself: shift them.)

    Attributes:
        tokens: int64, (batch, length, k), in each row different ones.
        log_p: Their log-probabilities among the whole vocabulary, (batch, length, k); -inf where a row has
            fewer than k.
        temperature: That of ``log_p``. A tail cannot be re-tempered, so a loss has this temperature or none.
    """

    tokens: Tensor
    log_p: Tensor
    temperature: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length."""
        return int(self.tokens.shape[0]), int(self.tokens.shape[1])


@dataclass(frozen=True)
class Signals:
    """What a forward pass gave. A student's ``scores`` are never ``TopK``.

    Attributes:
        scores: Logits, or the means to make them, or a teacher's k best tokens.
        hidden: As transformers gives ``hidden_states``: the embeddings' output, then one tensor a layer, each
            (batch, length, width); the last one is after the final norm. May be empty.
        attentions: One tensor a layer, (batch, heads, length, length), probabilities. May be empty.
    """

    scores: Logits | Head | TopK | None = None
    hidden: Sequence[Tensor] = ()
    attentions: Sequence[Tensor] = ()


class Places(NamedTuple):
    """The tokens that are predicted and count, by the place that predicts them.

    Attributes:
        rows: int64, (n,), in batch times length; the label of row r stands at r + 1.
        labels: int64, (n,).
        length: Tokens in a sequence.
    """

    rows: Tensor
    labels: Tensor
    length: int

    def of(self, states: Tensor) -> Tensor:
        """Return the rows of (batch, length, ...), (n, ...)."""
        return states[self.rows // self.length, self.rows % self.length]

    def of_maps(self, maps: Tensor) -> Tensor:
        """Return the queries of (batch, heads, length, keys), (n, heads, keys)."""
        return maps[self.rows // self.length, :, self.rows % self.length]


def places(labels: Tensor) -> Places:
    """Shift the labels: place t predicts token t + 1, if that one's label counts.

    Args:
        labels: int64, (batch, length); ``IGNORED`` where a token is prompt or padding. They stand at their
            tokens, as in transformers. A label is ignored by its value, never because it is the padding's
            id: an end token that also pads still counts where it ends an answer.
    """
    counts = labels.roll(-1, dims=1) != IGNORED
    counts[:, -1] = False
    rows = counts.flatten().nonzero().squeeze(-1)
    return Places(rows, labels.flatten()[rows + 1], int(labels.shape[1]))


def count_items(labels: Tensor) -> Tensor:
    """Return how many tokens of a batch are predicted and count, int64, scalar.

    The denominator of a step is the sum of this over all its micro-batches and ranks, counted on the labels
    that are trained on (after generation, where the student writes).
    """
    return (labels[:, 1:] != IGNORED).sum()
