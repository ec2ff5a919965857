"""Sum of task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod
from evolve.stages.merge.sums import LAMBDA, WEIGHT, add_to_base, normalize, task_vectors

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmetic(MergeMethod):
    """The base plus lambda times the weighted sum of what each model changed in it."""

    name = "task_arithmetic"
    paper = "Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089"
    base = "required"
    models = (1, None)
    deterministic = True
    per_model = (WEIGHT,)
    shared = (normalize(False), LAMBDA)
    ignored = ("int8_mask", "density", "rescale")

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * sum of weight * (model - base)."""
        return add_to_base(inputs, task_vectors(inputs))
