"""The loss of continual pre-training: the next token, and what holds the model near its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.training.collate import collate, logits_of
from evolve.training.rows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from evolve.training.regularizers.base import Penalty
    from evolve.training.rows import Row


class Objective:
    """``cross entropy + sum weight * penalty``, all in nats per token."""

    def __init__(self, pad_id: int, penalties: Mapping[str, tuple[float, Penalty]]) -> None:
        """Take what is added to the loss.

        Args:
            pad_id: Any token of the model.
            penalties: Name to weight and penalty.
        """
        self._pad_id = pad_id
        self._penalties = dict(penalties)

    def prepare(self, network: Any, rows: Sequence[Row], *, step: int) -> Sequence[Row]:
        """Return the rows as they are."""
        return rows

    def loss(
        self, network: Any, rows: Sequence[Row], *, num_items: int
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of a part of a step, and its terms without their weights.

        A penalty counts with the part's share of the step's tokens, so once in a step.
        """
        import torch

        batch = collate(rows, self._pad_id)
        logits = logits_of(network, batch).float()
        targets = batch["labels"][:, 1:].to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        share = int((targets != IGNORED).sum()) / num_items
        total = loss / num_items
        terms = {"cross_entropy": float(total.detach())}
        for name, (weight, ready) in self._penalties.items():
            value = ready.penalty(network, batch, logits) * share
            terms[name] = float(value.detach())
            total = total + weight * value
        return total, terms
