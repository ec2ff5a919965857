"""Squared distances of hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import LayerLoss

if TYPE_CHECKING:
    from torch import Tensor


class HiddenMse(LayerLoss):
    """A mean over the width; its size depends on that of the states."""

    name = "hs_mse"
    formula = "mean (W s - t)^2"
    paper = "TinyBERT, Jiao et al. 2020, arXiv:1909.10351"
    reads = "hidden"

    @staticmethod
    def per_token(student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of each token."""
        from evolve.tensors.states import mean_square

        return mean_square(student, teacher)
