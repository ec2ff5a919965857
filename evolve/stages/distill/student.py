"""A student made of some of a model's layers.

A student that starts from layers of its teacher learns from a fraction of the text that a fresh one needs
(DistilBERT, arXiv:1910.01108; Minitron, arXiv:2407.14679). Which layers matter less than how many: evenly
spaced ones, the first and the last among them, are the usual start.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evolve.config.values import Block, Choices, SearchInt
from evolve.training.arguments import ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.weights.model import Model


class StudentBlock(Block):
    """What of the model is the student."""

    keep_layers: SearchInt | list[int] = Field(examples=[12, [0, 3, 6, 9]])
    """So many layers, evenly spaced, the first and the last among them; or a list: exactly these."""

    @property
    def searched(self) -> bool:
        """Whether the number of layers is a gene."""
        return not isinstance(self.keep_layers, int | list)

    @property
    def most(self) -> int | list[int]:
        """The value that keeps most layers."""
        return self.keep_layers if isinstance(self.keep_layers, list) else int(max(ends(self.keep_layers)))

    @property
    def depths(self) -> tuple[int, int]:
        """The least and the most layers that are kept."""
        if isinstance(self.keep_layers, list):
            return len(self.keep_layers), len(self.keep_layers)
        return int(min(ends(self.keep_layers))), int(max(ends(self.keep_layers)))

    def problems(self) -> list[tuple[tuple[str, ...], str]]:
        """Return what is wrong whatever the model is."""
        keep = self.keep_layers
        if isinstance(keep, list):
            if not keep or keep[0] < 0 or any(one >= two for one, two in pairwise(keep)):
                return [(("keep_layers",), f"list different layers in rising order from 0, got {keep}")]
            return []
        if isinstance(keep, Choices) and not ends(keep):
            return [(("keep_layers",), "choices are whole numbers of layers")]
        if min(ends(keep)) < 1:
            return [(("keep_layers",), "keep at least 1 layer")]
        return []

    def misfit(self, depth: int) -> str:
        """Return why a model of ``depth`` layers cannot give them, or ""."""
        most = self.most
        wanted, count = (most[-1] + 1, f"layer {most[-1]}") if isinstance(most, list) else (most, f"{most}")
        return f"the model has {depth} layers, and {count} is asked for" if wanted > depth else ""


def kept_layers(keep: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the layers that are kept of ``depth``.

    Args:
        keep: How many, from 1 to ``depth``, or which.
        depth: Layers of the model.
    """
    if not isinstance(keep, int):
        return tuple(keep)
    if keep == 1:
        return (0,)
    # Halves round up, so that the choice does not depend on a layer's number being even.
    return tuple((2 * place * (depth - 1) + keep - 1) // (2 * (keep - 1)) for place in range(keep))


def made_student(block: StudentBlock | None, model: Model, *, whole: bool = False) -> Model:
    """Return the student: the model, or some of its layers one after the other.

    Args:
        block: What is kept; None: everything.
        model: The model, or its headers.
        whole: Whether ranges stand for the most layers.

    Raises:
        CandidateError: The model has no such layers.
    """
    if block is None:
        return model
    from evolve.errors import CandidateError
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.layers import layer_count
    from evolve.stages.merge.stage import MergeStage

    depth = layer_count(model)
    if misfit := block.misfit(depth):
        raise CandidateError("invalid_recipe", f"student.keep_layers: {misfit}")
    keep = block.most if whole else block.keep_layers
    if not isinstance(keep, int | list):
        raise TypeError("the number of layers must be fixed")
    slices: list[dict[str, Any]] = [
        {"sources": [{"model": "student", "layer_range": [layer, layer + 1]}]}
        for layer in kept_layers(keep, depth)
    ]
    stack = MergeBlock.model_validate({"merge_method": "passthrough", "slices": slices})
    models = {"student": model}
    return MergeStage.outline(stack, models) if whole else MergeStage.run(stack, models, seed=0)
