"""Forward KL: the student covers whatever the teacher may say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import TokenLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class ForwardKl(TokenLoss):
    """The true divergence, with the teacher's entropy in it: 0 where the two agree."""

    name = "kl"
    formula = "sum p (log p - log q)"
    paper = "Hinton et al. 2015, arXiv:1503.02531"
    power = 2

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the divergence of each token."""
        from evolve.tensors.divergence import forward_kl

        return forward_kl(*tokens.pair())
