"""Trim, elect sign, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod
from evolve.stages.merge.sums import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    add_agreed_terms,
    column,
    normalize,
    rescale,
    start,
    terms,
)

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.tensors.fused import Keep


class Ties(MergeMethod):
    """Task vectors keep their largest entries; in each place those of the elected sign are averaged."""

    name = "ties"
    paper = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708"
    base = "required"
    models = (1, None)
    per_model = (WEIGHT, DENSITY)
    shared = (normalize(True), rescale(False, "Restore the sum of magnitudes after trimming."), LAMBDA)
    stored = True

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * disjoint mean of the trimmed task vectors."""
        trimmed = [
            _trimmed(inputs, index, density) for index, density in enumerate(column(inputs, "density"))
        ]
        return add_agreed_terms(inputs, terms(inputs, trimmed))


def _trimmed(inputs: Inputs, index: int, density: float) -> tuple[Keep, float]:
    """Return what stays of one task vector, and the factor that makes up for the rest."""
    from evolve.tensors.fused import Everything
    from evolve.tensors.selection import kept_share, largest_on_device, selection
    from evolve.tensors.sparsify import kept

    tensor, base = inputs.tensors[index], start(inputs)
    count = kept(tensor.numel(), density)
    if count == tensor.numel():
        return Everything(), 1.0
    if count == 0:
        return Everything(), 0.0
    if tensor.device.type == "cpu":
        table = inputs.remember("selection", index, lambda: selection(tensor, base))
        keep = table.largest(count, tensor, base)
    else:
        keep = largest_on_device(count, tensor, base)
    if not inputs.shared["rescale"]:
        return keep, 1.0
    share = kept_share(keep, tensor, base)
    return keep, 1.0 / share if share else 1.0
