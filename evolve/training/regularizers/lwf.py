"""Learning without forgetting: the model goes on to say what the start says of the text that it trains on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from evolve.config.values import SearchNumber  # noqa: TC001  pydantic reads it
from evolve.training.regularizers.base import RegularizerBlock
from evolve.training.rows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.training.regularizers.base import Anchor, Penalty


class LwfBlock(RegularizerBlock):
    """``KL(start || model)`` of the tokens that are trained on.

    Takes the start network once more (4 bytes a parameter; none with an adapter), and half the time again.
    """

    temperature: SearchNumber = 1.0
    """Both predictions are taken at this temperature, and the divergence times its square."""


class Lwf:
    """See the text of the module."""

    name = "lwf"
    paper = "Li and Hoiem 2016, Learning without forgetting, arXiv:1606.09282"
    block: ClassVar[type[RegularizerBlock]] = LwfBlock
    weights_only = False
    held = 4

    @staticmethod
    def prepare(block: LwfBlock, anchor: Anchor) -> Penalty:
        """Keep a copy of the start network; with an adapter, the base without it is the start."""
        return _Kept(anchor.network, float(block.temperature))  # type: ignore[arg-type]


class _Kept:
    def __init__(self, network: Any, temperature: float) -> None:
        self._temperature = temperature
        self._start = None
        self.nbytes = 0
        if not hasattr(network, "disable_adapter"):
            self._start = copy.deepcopy(network).eval().requires_grad_(False)
            self.nbytes = sum(one.numel() * one.element_size() for one in self._start.parameters())

    def penalty(self, network: Any, batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Return the mean divergence over the tokens that count."""
        import torch

        from evolve.tensors.divergence import forward_kl, log_probabilities

        with torch.no_grad():
            before = self._before(network, batch)
        counted = (batch["labels"][:, 1:] != IGNORED).to(logits.device)
        old = log_probabilities(before[:, :-1][counted], self._temperature)
        new = log_probabilities(logits[:, :-1][counted], self._temperature)
        total = forward_kl(old, new).sum() * self._temperature**2
        return total / counted.sum().clamp(min=1)

    def _before(self, network: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from evolve.training.collate import logits_of

        if self._start is not None:
            return logits_of(self._start, dict(batch))
        training = network.training
        network.eval()
        try:
            with network.disable_adapter():
                return logits_of(network, dict(batch))
        finally:
            network.train(training)
