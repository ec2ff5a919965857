"""Cross-entropy with the tokens that came: ordinary fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class CrossEntropy(TokenLoss):
    """At temperature 1 always; no teacher takes part."""

    name = "cross_entropy"
    formula = "-log q(label)"
    paper = ""
    teacher = False

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the loss of each token."""
        from evolve.tensors.divergence import cross_entropy

        return cross_entropy(tokens.log_q, tokens.labels)
