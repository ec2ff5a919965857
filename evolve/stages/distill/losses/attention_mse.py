"""Where the teacher looks: squared distances of attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import LayerLoss

if TYPE_CHECKING:
    from torch import Tensor


class AttentionMse(LayerLoss):
    """Summed over keys, a mean over heads; of probabilities, where TinyBERT takes the raw scores."""

    name = "attention_mse"
    formula = "mean over heads sum (s - t)^2"
    paper = "TinyBERT, Jiao et al. 2020, arXiv:1909.10351"
    reads = "attentions"

    @staticmethod
    def per_token(student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of each token."""
        from evolve.tensors.states import attention_square

        return attention_square(student, teacher)
