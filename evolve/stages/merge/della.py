"""Drop small entries with a higher probability than large ones and rescale, then add the task vectors up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
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

    from evolve.tensors.fused import Keep, Term

_PER_MODEL = (
    WEIGHT,
    DENSITY,
    Param(
        "epsilon",
        0.15,
        low=0.0,
        high=1.0,
        suggest=(0.0, 0.3),
        doc="The largest entry of a row stays with probability density + epsilon, the smallest - epsilon.",
    ),
)
_RESCALE = rescale(True, "Divide what stays by its probability.")


class Della(MergeMethod):
    """Entries of a task vector stay by the rank of their magnitude in their row; then as ties."""

    name = "della"
    paper = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"
    base = "required"
    models = (1, None)
    per_model = _PER_MODEL
    shared = (normalize(True), _RESCALE, LAMBDA)
    stored = True
    deterministic = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * mean of those weighted pruned task vectors that have the elected sign."""
        return add_terms(inputs, _pruned(inputs), agreed=True)


class DellaLinear(Della):
    """Entries of a task vector stay by the rank of their magnitude in their row; then as task_arithmetic."""

    name = "della_linear"
    shared = (normalize(False), _RESCALE, LAMBDA)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * sum of weight * pruned task vector."""
        return add_terms(inputs, _pruned(inputs))


def _pruned(inputs: Inputs) -> list[Term]:
    densities, epsilons = column(inputs, "density"), column(inputs, "epsilon")
    kept = [
        _kept(inputs, index, density, epsilon)
        for index, (density, epsilon) in enumerate(zip(densities, epsilons, strict=True))
    ]
    return terms(inputs, kept)


def _kept(inputs: Inputs, index: int, density: float, epsilon: float) -> tuple[Keep, float]:
    """Return what stays of one task vector: nothing or everything at a density of 0 or 1, as in mergekit."""
    from evolve.tensors.fused import Everything
    from evolve.tensors.magnitude import ranked_chance, row_ranks

    tensor, base = inputs.tensors[index], start(inputs)
    if density <= 0 or density >= 1:
        return Everything(), 1.0 if density >= 1 else 0.0
    ranks = inputs.remember("ranks", index, lambda: row_ranks(tensor, base))
    seed, scaled = inputs.seeds[index], bool(inputs.shared["rescale"])
    return ranked_chance(ranks, density, epsilon, seed, rescale=scaled), 1.0
