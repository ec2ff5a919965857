"""The straight line between a base and its fine-tune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import start

if TYPE_CHECKING:
    from torch import Tensor


class WiseFt(MergeMethod):
    """The base and one fine-tune of it, interpolated: gains of the fine-tune, robustness of the base."""

    name = "wise_ft"
    paper = "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903"
    base = "required"
    models = (1, 1)
    shared = (
        Param("alpha", 0.5, low=0.0, high=1.0, suggest=(0.0, 1.0), doc="0: the base; 1: the fine-tune."),
    )
    stored = True
    mergekit = False

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return (1 - alpha) * base + alpha * model; exactly one of them at either end."""
        from evolve.tensors.fused import Term, merge

        alpha = inputs.shared["alpha"]
        shares = ((start(inputs), 1 - alpha), (inputs.tensors[0], alpha))
        terms = [Term(tensor, share) for tensor, share in shares]
        # Not through Inputs.base: whole models are added, not a task vector.
        return merge(None, terms, dtype=inputs.out, sink=inputs.sink)
