"""Between the base and the average, as far as the models agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import task_vectors

if TYPE_CHECKING:
    from torch import Tensor


class ModelStock(MergeMethod):
    """The base plus t times the average task vector; t follows from the angles between the task vectors.

    With N models and the mean cosine c of their pairs, t = N c / (1 + (N - 1) c); 0 where c is not positive.
    """

    name = "model_stock"
    paper = "Jang et al. 2024, Model Stock, arXiv:2403.19522"
    base = "required"
    models = (2, None)
    shared = (Param("filter_wise", False, kind="bool", doc="A t for each row of a tensor."),)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + t * mean of the task vectors."""
        from evolve.tensors.rows import combine, matrix
        from evolve.tensors.sphere import stock_ratio

        whole = not inputs.shared["filter_wise"]
        deltas = task_vectors(inputs)
        share = stock_ratio([matrix(delta, whole=whole) for delta in deltas]) / len(deltas)
        return combine(deltas, [share] * len(deltas), start=inputs.base, whole=whole)
