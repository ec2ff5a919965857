"""Angles between hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import LayerLoss

if TYPE_CHECKING:
    from torch import Tensor


class HiddenCosine(LayerLoss):
    """Blind to lengths, which differ much between layers and models."""

    name = "hs_cosine"
    formula = "1 - cos(W s, t)"
    paper = "DistilBERT, Sanh et al. 2019, arXiv:1910.01108"
    reads = "hidden"

    @staticmethod
    def per_token(student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of each token."""
        from evolve.tensors.states import cosine_distance

        return cosine_distance(student, teacher)
