"""How far a training has moved a model: the divergence itself, and what EWC's quadratic form says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from evolve.statistics.corpus import Corpus, sequences
from evolve.training.regularizers.base import Anchor
from evolve.training.regularizers.ewc import fisher_of
from evolve.training.regularizers.quadratic import Quadratic
from evolve.weights.network import open_network
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from evolve.training.regularizers.ewc import EwcBlock
    from evolve.weights.model import Model


class Drift(NamedTuple):
    """Two numbers in nats per token, on the same text.

    Attributes:
        kl: The mean divergence KL(start || trained) of a token.
        penalty: ``1/2 sum F d^2`` without a weight: what a diagonal knows of it, to second order.
    """

    kl: float
    penalty: float


def drift(block: EwcBlock, start: Model, trained: Model, *, length: int, seed: int) -> Drift:
    """Return how far a model is from its start, on the text that the Fisher information is gathered on.

    Args:
        block: Names the text; its weight has no part in it.
        start: With its content.
        trained: With the same tensors.
        length: Tokens of a sequence.
        seed: Of the training: with it the Fisher information is the one that the training used.
    """
    network, names = open_network(start)
    other, _ = open_network(trained)
    form = Quadratic(network, fisher_of(block, Anchor(start, network, names, length, seed)))
    with torch.no_grad():
        penalty = float(form.penalty(other, {}, torch.zeros(1)))
    tokenizer = load_tokenizer(start.files, start.config)
    corpus = Corpus(block.path, block.content or "", block.samples * length, length, seed)
    nats, count = 0.0, 0
    for tokens in sequences(corpus, lambda text: tokenizer.documents([text])[0]):
        with torch.no_grad():
            before, after = (
                one(input_ids=tokens[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
                for one in (network, other)
            )
        nats += float((before.exp() * (before - after)).sum())
        count += len(before)
    return Drift(nats / count, penalty)
