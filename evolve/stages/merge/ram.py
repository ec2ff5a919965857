"""Average what several models changed, keep what one alone changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import task_vectors

if TYPE_CHECKING:
    from torch import Tensor

_PAPER = "Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, arXiv:2601.13572"
_EPSILON = Param(
    "epsilon", 1e-5, low=0.0, suggest=(1e-6, 1e-4), doc="Entries that are not larger count as unchanged."
)


class Ram(MergeMethod):
    """In each place the average of the task vectors that are not zero there. Made for sparse ones (RL)."""

    name = "ram"
    paper = _PAPER
    base = "required"
    models = (1, None)
    shared = (_EPSILON,)

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + average of what is changed by several, + what is changed by one."""
        return _merge(inputs, task_vectors(inputs), [1.0] * len(inputs.tensors))


class RamPlusTensorLocal(MergeMethod):
    """As ram; what a model alone changed counts 1 + r * min(rho, alpha) times.

    rho is the number of entries of the tensor that the model changed together with others, over those that
    it changed alone.
    """

    name = "ramplus_tl"
    paper = _PAPER
    base = "required"
    models = (1, None)
    shared = (
        Param("r", 0.1, low=0.0, suggest=(0.0, 1.0), doc="How much more unique changes count by overlap."),
        Param("alpha", 0.2, low=0.0, suggest=(0.0, 1.0), doc="Most overlap that counts."),
        _EPSILON,
    )

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + average of what is changed by several, + scaled what is changed by one."""
        from evolve.tensors.ram import count_moved

        deltas = task_vectors(inputs)
        shared = inputs.shared
        factors = []
        for moved in count_moved(deltas, shared["epsilon"]):
            # Without any entry of its own the factor has no effect.
            overlap = moved.shared / moved.unique if moved.unique else 0.0
            factors.append(1 + shared["r"] * min(overlap, shared["alpha"]))
        return _merge(inputs, deltas, factors)


def _merge(inputs: Inputs, deltas: list[Tensor], factors: list[float]) -> Tensor:
    from evolve.tensors.interpolate import weighted_sum
    from evolve.tensors.ram import merge_moved

    merged = merge_moved(deltas, inputs.shared["epsilon"], factors)
    return weighted_sum([merged], [1.0], start=inputs.base)
