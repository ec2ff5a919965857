"""Skew reverse KL: reverse KL to a mixture with a little of the student in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss
from evolve.stages.param import Param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class SkewReverseKl(TokenLoss):
    """For text of the student. At alpha = 0 it is the reverse KL."""

    name = "skew_reverse_kl"
    formula = "KL(q || (1 - alpha) p + alpha q)"
    paper = "DistiLLM, Ko et al. 2024, arXiv:2402.03898"
    power = 2
    params = (
        Param(
            "alpha", 0.1, low=0.0, high=0.99, suggest=(0.01, 0.3), doc="Share of the first in the mixture."
        ),
    )

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the divergence of each token."""
        from evolve.tensors.divergence import skew_reverse_kl

        return skew_reverse_kl(*tokens.pair(), values["alpha"])
