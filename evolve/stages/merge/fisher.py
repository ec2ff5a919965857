"""An average in which each entry counts by the Fisher information that a model has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import column, known, mean, optional_weight, total

if TYPE_CHECKING:
    from torch import Tensor


class Fisher(MergeMethod):
    """Fisher-weighted averaging: the mode of the product of the models' Gaussian posteriors.

    Needs ``statistics``: the diagonal Fisher information of each model on a text. ``floor`` is a share of
    the mean Fisher information of the model, so that where no model has any the result is the mean.
    """

    name = "fisher"
    paper = "Matena and Raffel 2022, Merging models with Fisher-weighted averaging, arXiv:2111.09832"
    base = "none"
    models = (1, None)
    per_model = (optional_weight("Factor of the model's Fisher information."),)
    shared = (
        Param("normalize", True, kind="bool", doc="Divide each model's Fisher information by its mean."),
        Param("floor", 1e-6, low=0.0, doc="Smallest Fisher information, in means of the model's."),
    )
    statistics = "fisher"
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return sum of weight * F * model over sum of weight * F."""
        from evolve.tensors.averages import fisher_average

        weights = column(inputs, "weight")
        total(inputs, weights)
        found = known(inputs)
        if found is None:
            return mean(inputs, weights)
        if inputs.shared["normalize"]:
            factors = [1 / one.mean if one.mean > 0 else 0.0 for one in found]
            floors = [inputs.shared["floor"]] * len(found)
        else:
            factors = [1.0] * len(found)
            floors = [inputs.shared["floor"] * one.mean for one in found]
        return fisher_average(
            inputs.tensors, [one.values for one in found], weights, factors=factors, floors=floors
        )
