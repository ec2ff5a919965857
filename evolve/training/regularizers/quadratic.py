"""Half the squared distance from the start weights, each parameter with its own factor."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Quadratic:
    """``1/2 sum F (theta - theta*)^2``, over the parameters that are trained.

    It holds the start weights in float32, 4 bytes a trained parameter, and as many for given factors.
    Beside them a step needs no memory of the size of the model: the gradient is written down, not recorded.
    """

    def __init__(self, network: Any, factors: Mapping[str, Tensor] | None = None) -> None:
        """Take the weights as they are for the start.

        Args:
            network: At its start; parameters that are not trained are left out.
            factors: Parameter to its factors, float32, of its shape; None: all are 1. A parameter without
                factors is free.
        """
        self._start = {}
        self._factors = {}
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad or (factors is not None and name not in factors):
                continue
            self._start[name] = parameter.detach().float().clone()
            if factors is not None:
                self._factors[name] = factors[name].to(parameter.device)
        self.nbytes = sum(
            tensor.numel() * 4 for held in (self._start, self._factors) for tensor in held.values()
        )

    def penalty(self, network: Any, batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Return the penalty; batch and logits have no part in it."""
        import torch

        parameters = dict(network.named_parameters())
        total = torch.zeros((), device=logits.device)
        for name, start in self._start.items():
            factor = self._factors.get(name)
            total = total + _distance().apply(parameters[name], start, factor)
        return total


@cache
def _distance() -> Any:
    import torch

    class Distance(torch.autograd.Function):
        """Half the weighted squared distance of one parameter from its start."""

        @staticmethod
        def forward(ctx: Any, parameter: Tensor, start: Tensor, factor: Tensor | None) -> Tensor:
            ctx.save_for_backward(parameter, start, factor)
            step = parameter.float() - start
            step.square_()
            if factor is not None:
                step.mul_(factor)
            # Sums of squares of a large table need more digits than float32 has.
            return 0.5 * step.sum(dtype=torch.float64).float()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
            parameter, start, factor = ctx.saved_tensors
            step = parameter.float() - start
            if factor is not None:
                step.mul_(factor)
            return step.mul_(gradients[0]).to(parameter.dtype), None, None

    return Distance
