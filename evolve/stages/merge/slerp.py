"""Spherical interpolation between two models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import CandidateError
from evolve.stages.merge.base import Inputs, MergeMethod, Param

if TYPE_CHECKING:
    from torch import Tensor


class Slerp(MergeMethod):
    """Each weight tensor is one vector; t = 0 is the base, t = 1 the other model."""

    name = "slerp"
    paper = "Shoemake 1985, Animating rotation with quaternion curves"
    base = "required"
    models = (1, 1)
    deterministic = True
    shared = (
        Param("t", None, low=0.0, high=1.0, suggest=(0.0, 1.0), doc="0: the base; 1: the other model."),
    )

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the point at ``t`` of the arc from the base to the model."""
        from evolve.tensors.interpolate import slerp

        if inputs.base is None:
            raise CandidateError("invalid_recipe", f"{inputs.name}: slerp needs a base_model")
        return slerp(inputs.base, inputs.tensors[0], inputs.shared["t"])
