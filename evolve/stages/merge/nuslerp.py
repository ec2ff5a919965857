"""Spherical interpolation of two models, or of what they changed in a base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import WEIGHT, column, task_vectors, total

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class NuSlerp(MergeMethod):
    """The point of the arc between two models, or with a base between their task vectors, at w2 / (w1 + w2).

    Each weight tensor is one vector; with ``nuslerp_flatten: false`` its columns, or with
    ``nuslerp_row_wise: true`` its rows (vectors along the last axis) are interpolated one by one.
    """

    name = "nuslerp"
    paper = "Shoemake 1985, Animating rotation with quaternion curves"
    base = "optional"
    models = (2, 2)
    per_model = (WEIGHT,)
    shared = (
        Param("nuslerp_row_wise", False, kind="bool", doc="Rows, not columns, where flatten is off."),
        Param("nuslerp_flatten", True, kind="bool", doc="Take a whole tensor as one vector."),
    )

    @classmethod
    def mergekit_notes(cls, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Say that mergekit turns rows and columns around."""
        if "nuslerp_flatten" not in parameters:
            return ()
        return (
            "where nuslerp_flatten is false, mergekit 0.1.5 takes columns for nuslerp_row_wise: true and "
            "rows for false: turn nuslerp_row_wise around there for the scored model",
        )

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the point of the arc; for a base, the base plus that of the task vectors."""
        from evolve.tensors.sphere import arc

        weights = column(inputs, "weight")
        t = weights[1] / total(inputs, weights, mend="change a weight")
        axis = None if inputs.shared["nuslerp_flatten"] else -1 if inputs.shared["nuslerp_row_wise"] else 0
        first, second = inputs.tensors if inputs.base is None else task_vectors(inputs)
        return arc(first, second, t, axis=axis, start=inputs.base)
