"""The loss of continual pre-training: the next token, and what holds the model near its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.training.collate import logits_of
from evolve.training.rows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.training.regularizers.base import Penalty


class Parts(NamedTuple):
    """The loss of a micro-batch.

    Attributes:
        total: Scalar with its gradient; micro-batches of a step add up to the loss of the step.
        terms: What it is made of, in nats per token: ``loss``, and each penalty without its weight; without
            a gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Objective:
    """``cross entropy + sum weight * penalty``, all in nats per token."""

    def __init__(self, penalties: Mapping[str, tuple[float, Penalty]]) -> None:
        """Take what is added to the loss: name to weight and penalty."""
        self._penalties = dict(penalties)

    def __call__(self, network: Any, batch: Mapping[str, Tensor], num_items: Tensor | int) -> Parts:
        """Return the loss of a micro-batch.

        A penalty counts with the micro-batch's share of the step's tokens, so once in a step.

        Args:
            network: The network that is trained.
            batch: As :func:`evolve.training.collate.collate` makes it.
            num_items: Tokens that count in the whole step.
        """
        import torch

        logits = logits_of(network, dict(batch)).float()
        targets = batch["labels"][:, 1:].to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        counted = (targets != IGNORED).sum()
        total = loss / num_items
        terms = {"loss": loss.detach() / counted.clamp(min=1)}
        for name, (weight, ready) in self._penalties.items():
            value = ready.penalty(network, batch, logits)
            terms[name] = value.detach()
            total = total + weight * value * (counted / num_items)
        return Parts(total, terms)
