"""Where the teacher looks: KL between attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.distill.losses.base import LayerLoss

if TYPE_CHECKING:
    from torch import Tensor


class AttentionKl(LayerLoss):
    """Mean over heads. Of a teacher with more heads, neighbours are averaged."""

    name = "attention_kl"
    formula = "mean over heads KL(teacher || student)"
    paper = "MobileBERT, Sun et al. 2020, arXiv:2004.02984"
    reads = "attentions"

    @staticmethod
    def per_token(student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of each token."""
        from evolve.tensors.states import attention_kl

        return attention_kl(student, teacher)
