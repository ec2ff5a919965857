"""Only the most important changes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import CandidateError
from evolve.stages.merge.base import Inputs, MergeMethod

if TYPE_CHECKING:
    from torch import Tensor


class ArceeFusion(MergeMethod):
    """The base with those weights of the other model whose importance stands out.

    Importance is the size of the change times the Kullback-Leibler divergence between the softmax of the
    weight's row in the two models; it stands out from the median plus 1.5 times the interquartile range on.
    """

    name = "arcee_fusion"
    paper = "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md"
    base = "required"
    models = (1, 1)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the base, its important weights replaced."""
        from evolve.tensors.arcee import fuse_important

        if inputs.base is None:
            raise CandidateError("invalid_recipe", f"{inputs.name}: arcee_fusion needs a base_model")
        return fuse_important(inputs.base, inputs.tensors[0])
