"""Reverse KL: the student says nothing that the teacher would not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class ReverseKl(TokenLoss):
    """Seeks modes. On a teacher's k best tokens it is that of the buckets, a lower bound."""

    name = "reverse_kl"
    formula = "sum q (log q - log p)"
    paper = "MiniLLM, Gu et al. 2024, arXiv:2306.08543"
    power = 2

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the divergence of each token."""
        from evolve.tensors.divergence import reverse_kl

        return reverse_kl(*tokens.pair())
