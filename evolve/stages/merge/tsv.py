"""Task vectors added up after their singular vectors were made orthogonal to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.layers import layer_of
from evolve.stages.merge.sums import LAMBDA, task_vectors

if TYPE_CHECKING:
    from torch import Tensor


class Tsv(MergeMethod):
    """TSV-Merge: each matrix keeps its largest singular values; what the models share is pulled apart.

    Tensors that are no matrices, and embeddings, positions and heads unless ``embeddings`` is set, get the
    mean of the task vectors instead, as in the authors' code.
    """

    name = "tsv"
    paper = "Gargiulo et al. 2025, Task singular vectors, arXiv:2412.00081"
    base = "required"
    models = (1, None)
    shared = (
        Param(
            "rank",
            0.0,
            low=0.0,
            high=1.0,
            suggest=(0.05, 0.5),
            doc="Share of the singular values that each keeps; 0: one over the number of models.",
        ),
        Param("embeddings", False, kind="bool", doc="Treat matrices outside the layers in this way too."),
        LAMBDA,
    )
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * the merged task vector."""
        from evolve.tensors.interpolate import weighted_sum
        from evolve.tensors.singular import merge_singular

        deltas = task_vectors(inputs)
        outside = layer_of(inputs.name) is None and not inputs.shared["embeddings"]
        factor = inputs.shared["lambda"]
        if deltas[0].ndim != 2 or outside:
            weights = [factor] * len(deltas)
            return weighted_sum(deltas, weights, divisor=float(len(deltas)), start=inputs.base)
        merged = merge_singular(deltas, inputs.shared["rank"] or None)
        return weighted_sum([merged], [factor], start=inputs.base)
