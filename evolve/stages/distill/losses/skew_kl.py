"""Skew KL: forward KL to a mixture, so that no token of the teacher costs without limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss
from evolve.stages.param import Param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class SkewKl(TokenLoss):
    """For text of the teacher. At alpha = 0 it is the forward KL."""

    name = "skew_kl"
    formula = "KL(p || alpha p + (1 - alpha) q)"
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
        from evolve.tensors.divergence import skew_kl

        return skew_kl(*tokens.pair(), values["alpha"])
