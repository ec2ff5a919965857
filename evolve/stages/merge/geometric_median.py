"""The point with the smallest sum of distances to the models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import column, optional_weight, total

if TYPE_CHECKING:
    from torch import Tensor


class GeometricMedian(MergeMethod):
    """A mean that outliers do not move far. Each tensor is one vector; distances count, not their squares."""

    name = "geometric_median"
    paper = "Pillutla et al. 2019, Robust aggregation for federated learning, arXiv:1912.13445"
    base = "none"
    models = (1, None)
    per_model = (optional_weight("Weight of the model's distance."),)
    shared = (
        Param("max_iter", 100, low=1, kind="int", doc="Most steps of Weiszfeld's iteration."),
        Param("tol", 1e-8, low=0.0, doc="Stop at a step shorter than this share of the mean distance."),
    )
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the geometric median."""
        from evolve.tensors.median import geometric_median

        weights = column(inputs, "weight")
        total(inputs, weights)
        return geometric_median(
            inputs.tensors, weights, max_iter=int(inputs.shared["max_iter"]), tol=inputs.shared["tol"]
        )
