"""Drop the smallest and the largest entries, then add the task vectors up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import (
    DENSITY,
    LAMBDA,
    WEIGHT,
    add_to_base,
    column,
    normalize,
    rescale,
    task_vectors,
)

if TYPE_CHECKING:
    from torch import Tensor

_GAMMA = Param(
    "gamma", 0.01, low=0.0, high=1.0, suggest=(0.0, 0.1), doc="Share of the largest entries to drop."
)


class Breadcrumbs(MergeMethod):
    """Task vectors lose their largest ``gamma`` and then their smallest entries; then as task_arithmetic."""

    name = "breadcrumbs"
    paper = "Davari and Belilovsky 2024, Model Breadcrumbs, arXiv:2312.06795"
    base = "required"
    models = (1, None)
    per_model = (WEIGHT, DENSITY, _GAMMA)
    shared = (normalize(False), rescale(False, "Restore the sum of magnitudes after dropping."), LAMBDA)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * sum of weight * what is left of the task vector."""
        return add_to_base(inputs, _masked(inputs))


class BreadcrumbsTies(Breadcrumbs):
    """Task vectors lose their largest ``gamma`` and then their smallest entries; then as ties."""

    name = "breadcrumbs_ties"

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + lambda * sum of what is left of those task vectors that have the elected sign."""
        return add_to_base(inputs, _masked(inputs), agreed=True)


def _masked(inputs: Inputs) -> list[Tensor]:
    from evolve.tensors.magnitude import drop_outliers_

    deltas = task_vectors(inputs)
    settings = zip(column(inputs, "density"), column(inputs, "gamma"), strict=True)
    for delta, (density, gamma) in zip(deltas, settings, strict=True):
        drop_outliers_(delta, density, gamma, rescale=bool(inputs.shared["rescale"]))
    return deltas
