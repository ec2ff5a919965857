"""Riemannian mean of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param

if TYPE_CHECKING:
    from torch import Tensor


class Karcher(MergeMethod):
    """The direction with the smallest squared angles to those of all models, times their mean length.

    Each weight tensor is one vector, and all models count alike: there are no weights. Where the directions
    cancel out and have no mean, the result is the average of the models.
    """

    name = "karcher"
    paper = "Karcher 1977, Riemannian center of mass; arXiv:2603.04972"
    base = "none"
    models = (1, None)
    shared = (
        Param("max_iter", 10, low=1, kind="int", doc="Most iterations."),
        Param("tol", 1e-5, low=0.0, doc="Angle of the last step."),
    )

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the mean direction times the mean length."""
        from evolve.tensors.sphere import karcher_mean

        iterations = round(inputs.shared["max_iter"])
        return karcher_mean(inputs.tensors, max_iter=iterations, tol=inputs.shared["tol"])
