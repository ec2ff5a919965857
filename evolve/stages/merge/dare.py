"""Drop at random and rescale, then add the task vectors up."""

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
    terms,
)

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.tensors.fused import Term


class DareLinear(MergeMethod):
    """Each entry of a task vector stays with probability ``density``; then as task_arithmetic."""

    name = "dare_linear"
    paper = "Yu et al. 2024, Language models are super Mario, arXiv:2311.03099"
    base = "required"
    models = (1, None)
    per_model = (WEIGHT, DENSITY)
    shared = (normalize(False), rescale(True, "Divide what stays by the density."), LAMBDA)
    stored = True
    deterministic = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * sum of weight * thinned task vector."""
        return add_terms(inputs, _thinned(inputs))


class DareTies(DareLinear):
    """Each entry of a task vector stays with probability ``density``; then the sign is elected as in ties."""

    name = "dare_ties"

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * sum of those weighted thinned task vectors that have the elected sign."""
        return add_terms(inputs, _thinned(inputs), agreed=True)


def _thinned(inputs: Inputs) -> list[Term]:
    from evolve.tensors.fused import chance

    dropped = [
        chance(density, seed, rescale=bool(inputs.shared["rescale"]))
        for density, seed in zip(column(inputs, "density"), inputs.seeds, strict=True)
    ]
    return terms(inputs, dropped)
