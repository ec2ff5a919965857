"""What a regulariser is: made ready at the start weights, then a number that is added to the loss.

The number is in nats per token, as the loss is, so a weight means the same whatever the size of a model. One
with the weight 0 is not made ready and not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from evolve.config.values import Block, SearchNumber

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.weights.model import Model


class RegularizerBlock(Block):
    """What the block of every regulariser has."""

    weight: SearchNumber = 0.0
    """Factor of the penalty beside the loss, both in nats per token; 0: not computed."""


@dataclass(frozen=True)
class Anchor:
    """The start of a training.

    Attributes:
        model: The start model; its ``content`` is set, and stands for it in caches.
        network: The network before its first step.
        names: Tensor of the model to parameter of the network.
        max_length: Most tokens of a row.
        seed: Of the training.
    """

    model: Model
    network: Any
    names: Mapping[str, str]
    max_length: int
    seed: int


class Penalty(Protocol):
    """A regulariser that is ready."""

    nbytes: int
    """Memory that it takes beside the network, as far as it is known."""

    def penalty(self, network: Any, batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Return the penalty as a float32 scalar with its gradient, without its weight; 0 at the start.

        Args:
            network: The network that is trained.
            batch: As :func:`evolve.training.collate.collate` makes it.
            logits: What the network says to it, (rows, longest, vocabulary), with their gradient.
        """
        ...


class Regularizer(Protocol):
    """One kind of regulariser."""

    name: ClassVar[str]
    paper: ClassVar[str]
    block: ClassVar[type[RegularizerBlock]]
    weights_only: ClassVar[bool]
    """Whether it looks at the trained parameters alone: such a one says nothing of an adapter."""
    held: ClassVar[int]
    """Bytes that it holds of each parameter in full training; with an adapter none does."""

    @staticmethod
    def prepare(block: Any, anchor: Anchor) -> Penalty:
        """Return the penalty for a block with every value fixed and a weight above 0.

        Raises:
            CandidateError: It cannot be made ready.
        """
        ...
