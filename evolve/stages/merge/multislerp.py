"""Mean direction of several models, or of what they changed in a base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import WEIGHT, column, task_vectors, total

if TYPE_CHECKING:
    from torch import Tensor


class MultiSlerp(MergeMethod):
    """The mean direction of the models, or with a base of their task vectors, times their mean length.

    Both means are weighted, and each weight tensor is one vector. The direction is that of the weighted sum
    of the unit vectors. Where these cancel out, or all task vectors are zero, the result is the weighted sum
    of the vectors.
    """

    name = "multislerp"
    paper = "Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    base = "optional"
    models = (1, None)
    per_model = (WEIGHT,)
    shared = (
        Param("normalize_weights", True, kind="bool", doc="Divide the weights by their sum."),
        Param("eps", 1e-8, low=0.0, doc="Unit vectors whose weighted sum is not longer cancel out."),
    )

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return mean direction times mean length; for a base, the base plus that of the task vectors."""
        from evolve.tensors.sphere import chordal_mean

        weights = column(inputs, "weight")
        if inputs.shared["normalize_weights"]:
            divisor = total(inputs, weights, mend="change a weight, or set normalize_weights: false")
            weights = [weight / divisor for weight in weights]
        vectors = inputs.tensors if inputs.base is None else task_vectors(inputs)
        return chordal_mean(vectors, weights, eps=inputs.shared["eps"], start=inputs.base)
