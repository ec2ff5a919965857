"""Generalised Jensen-Shannon divergence: between the two directions of the KL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss
from evolve.stages.param import Param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class GeneralizedJsd(TokenLoss):
    """Bounded: at most log 2 at beta = ½. Value and gradient vanish as beta goes to 0 or 1."""

    name = "jsd"
    formula = "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q"
    paper = "GKD, Agarwal et al. 2024, arXiv:2306.13649"
    power = 2
    params = (
        Param(
            "beta", 0.5, low=0.01, high=0.99, suggest=(0.1, 0.9), doc="Share of the teacher in the mixture."
        ),
    )

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the divergence of each token."""
        from evolve.tensors.divergence import jensen_shannon

        return jensen_shannon(*tokens.pair(), values["beta"])
