"""The straight line between a base and its fine-tune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import CandidateError
from evolve.stages.merge.base import Inputs, MergeMethod, Param

if TYPE_CHECKING:
    from torch import Tensor


class WiseFt(MergeMethod):
    """The base and one fine-tune of it, interpolated: gains of the fine-tune, robustness of the base."""

    name = "wise_ft"
    paper = "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903"
    base = "required"
    models = (1, 1)
    shared = (
        Param("alpha", 0.5, low=0.0, high=1.0, suggest=(0.0, 1.0), doc="0: the base; 1: the fine-tune."),
    )
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return (1 - alpha) * base + alpha * model."""
        from evolve.tensors.interpolate import lerp

        if inputs.base is None:
            raise CandidateError("invalid_recipe", f"{inputs.name}: wise_ft needs a base_model")
        return lerp(inputs.base, inputs.tensors[0], inputs.shared["alpha"])
