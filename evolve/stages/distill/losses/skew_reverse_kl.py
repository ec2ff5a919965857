"""Skew reverse KL: reverse KL to a mixture with a little of the student in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.skew_kl import SkewKl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.losses.base import Tokens


class SkewReverseKl(SkewKl):
    """For text of the student. At alpha = 0 it is the reverse KL."""

    name = "skew_reverse_kl"
    formula = "KL(q || (1 - alpha) p + alpha q)"

    @staticmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return the divergence of each token."""
        from evolve.tensors.divergence import skew_reverse_kl

        return skew_reverse_kl(*tokens.pair(), values["alpha"])
