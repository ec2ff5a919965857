"""A small step from one model towards another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import CandidateError
from evolve.stages.merge.base import Inputs, MergeMethod, Param

if TYPE_CHECKING:
    from torch import Tensor


class NearSwap(MergeMethod):
    """Each weight of the base moves towards that of the other model, but by no more than ``t``.

    So weights that are not farther apart than ``t`` become those of the other model. t = 0 is the base.
    """

    name = "nearswap"
    paper = "alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    base = "required"
    models = (1, 1)
    shared = (Param("t", None, low=0.0, suggest=(0.0, 0.01), doc="Most that a weight changes."),)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + task vector, cut off at -t and t."""
        from evolve.tensors.arcee import approach

        if inputs.base is None:
            raise CandidateError("invalid_recipe", f"{inputs.name}: nearswap needs a base_model")
        return approach(inputs.base, inputs.tensors[0], inputs.shared["t"])
