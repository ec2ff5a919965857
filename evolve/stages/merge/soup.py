"""The plain average of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod

if TYPE_CHECKING:
    from torch import Tensor


class UniformSoup(MergeMethod):
    """The mean of all models. The greedy soup is a search: ``sampler: greedy_soup`` over ``linear``."""

    name = "uniform_soup"
    paper = "Wortsman et al. 2022, Model soups, arXiv:2203.05482"
    base = "none"
    models = (1, None)
    stored = True
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the mean."""
        from evolve.tensors.fused import Term, merge

        terms = [Term(tensor, 1.0) for tensor in inputs.tensors]
        return merge(None, terms, dtype=inputs.out, divisor=float(len(terms)), sink=inputs.sink)
