"""Linear layers merged by the regression that reproduces all of their outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import column, known, mean, optional_weight, total

if TYPE_CHECKING:
    from torch import Tensor


class RegMean(MergeMethod):
    """Each linear layer is the least-squares fit to the outputs of all models' layers on their own inputs.

    Needs ``statistics``: the inner products of each linear layer's inputs on a text. All other tensors are
    the weighted mean: embeddings (also where they are the head), norms, biases.
    """

    name = "regmean"
    paper = "Jin et al. 2023, Dataless knowledge fusion by merging weights, arXiv:2212.09849"
    base = "none"
    models = (1, None)
    per_model = (optional_weight("Factor of the model's squared errors."),)
    shared = (
        Param(
            "alpha",
            0.9,
            low=0.0,
            high=1.0,
            suggest=(0.1, 1.0),
            doc="Factor of the products of two different inputs.",
        ),
    )
    statistics = "gram"
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return (sum of weight * G)^-1 * sum of weight * G * model, or the mean where there is no G."""
        from evolve.tensors.averages import regression_average

        weights = column(inputs, "weight")
        total(inputs, weights)
        found = known(inputs)
        if found is None:
            return mean(inputs, weights)
        # transformers' Linear is (out, in), the Conv1D of GPT-2 (in, out).
        turned = [one.input_axis == 1 for one in found]
        matrices = [t.T if turn else t for t, turn in zip(inputs.tensors, turned, strict=True)]
        grams = [one.values for one in found]
        merged = regression_average(matrices, grams, weights, keep=inputs.shared["alpha"])
        return merged.T.contiguous() if turned[0] else merged
