"""Weighted average of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod
from evolve.stages.merge.sums import WEIGHT, column, normalize, terms, total

if TYPE_CHECKING:
    from torch import Tensor


class Linear(MergeMethod):
    """Sum of weight times model, divided by the sum of the weights. Equal weights: a uniform soup."""

    name = "linear"
    paper = "Wortsman et al. 2022, Model soups, arXiv:2203.05482"
    base = "none"
    models = (1, None)
    per_model = (WEIGHT,)
    shared = (normalize(True),)
    stored = True

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the average."""
        from evolve.tensors.fused import merge

        divisor = total(inputs, column(inputs, "weight")) if inputs.shared["normalize"] else 1.0
        # Not through Inputs.base: whole models are added, not task vectors.
        return merge(None, terms(inputs), dtype=inputs.out, divisor=divisor, sink=inputs.sink)
