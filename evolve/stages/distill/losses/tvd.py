"""Total variation: what speculative sampling rejects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class TotalVariation(TokenLoss):
    """From 0 to 1. Its gradient falls as 1/T, so its factor is T, not T²."""

    name = "tvd"
    formula = "sum |p - q| / 2"
    paper = "Wen et al. 2023, arXiv:2307.15190"
    power = 1

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the divergence of each token."""
        from evolve.tensors.divergence import total_variation

        return total_variation(*tokens.pair())
