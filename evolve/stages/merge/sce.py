"""Select, calculate, erase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import task_vectors

if TYPE_CHECKING:
    from torch import Tensor


class Sce(MergeMethod):
    """Places where the task vectors vary most; each vector weighs as much as it has energy in them.

    In each place the task vectors whose sign is not that of their sum are left out, and the others averaged.
    With ``select_topk`` below 1, places where all task vectors are equal stay as in the base: with a single
    model these are all.
    """

    name = "sce"
    paper = "Wan et al. 2024, FuseChat, arXiv:2408.07990"
    base = "required"
    models = (1, None)
    shared = (
        Param(
            "select_topk",
            1.0,
            low=0.0,
            high=1.0,
            suggest=(0.05, 1.0),
            doc="Share of the places where the models differ to merge.",
        ),
    )

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + mean of the agreeing task vectors, weighted by their squares."""
        import torch

        from evolve.tensors.fused import Term, merge
        from evolve.tensors.interpolate import weighted_sum
        from evolve.tensors.sce import energy, erase_minority_, keep_varied_

        deltas = task_vectors(inputs)
        keep_varied_(deltas, inputs.shared["select_topk"])
        energies = [energy(delta) for delta in deltas]
        highest = max(energies)
        weights = [share / highest if highest > 0 else 0.0 for share in energies]
        erase_minority_(deltas)
        shares = [Term(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
        agreed = merge(None, shares, dtype=torch.float32, elect="mean")
        return weighted_sum([agreed], [1.0], start=inputs.base)
