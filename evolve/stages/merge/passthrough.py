"""One model as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import column

if TYPE_CHECKING:
    from torch import Tensor


class Passthrough(MergeMethod):
    """A copy, each tensor times ``scale``. The scale of a tied embedding is also that of the head."""

    name = "passthrough"
    paper = "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md"
    base = "none"
    models = (1, 1)
    deterministic = True
    per_model = (Param("scale", 1.0, suggest=(0.5, 1.5), doc="Factor of each tensor."),)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the tensor times its scale."""
        from evolve.tensors.interpolate import weighted_sum

        return weighted_sum(inputs.tensors, column(inputs, "scale"))
