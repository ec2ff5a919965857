"""Trim, elect sign, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod
from evolve.stages.merge.sums import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    add_terms,
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
        kept = [_trimmed(inputs, index, density) for index, density in enumerate(column(inputs, "density"))]
        return add_terms(inputs, terms(inputs, kept), agreed=True)


def _trimmed(inputs: Inputs, index: int, density: float) -> tuple[Keep, float]:
    """Return what stays of one task vector, and the factor that makes up for the rest."""
    from evolve.tensors.selection import selection, trimmed

    tensor, base = inputs.tensors[index], start(inputs)
    return trimmed(
        tensor,
        base,
        density,
        rescale=bool(inputs.shared["rescale"]),
        table=lambda: inputs.remember("selection", index, lambda: selection(tensor, base)),
    )
