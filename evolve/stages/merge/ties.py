"""Trim, elect sign, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod
from evolve.stages.merge.sums import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    add_agreed_to_base,
    column,
    normalize,
    rescale,
    task_vectors,
)

if TYPE_CHECKING:
    from torch import Tensor


class Ties(MergeMethod):
    """Task vectors keep their largest entries; in each place those of the elected sign are averaged."""

    name = "ties"
    paper = "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708"
    base = "required"
    models = (1, None)
    deterministic = True
    per_model = (WEIGHT, DENSITY)
    shared = (normalize(True), rescale(False, "Restore the sum of magnitudes after trimming."), LAMBDA)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * disjoint mean of the trimmed task vectors."""
        from evolve.tensors.sparsify import trim_

        deltas = task_vectors(inputs)
        for delta, density in zip(deltas, column(inputs, "density"), strict=True):
            trim_(delta, density, rescale=bool(inputs.shared["rescale"]))
        return add_agreed_to_base(inputs, deltas)
