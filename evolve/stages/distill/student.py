"""A student made of some of a model's layers.

A student that starts from layers of its teacher learns from a fraction of the text that a fresh one needs
(DistilBERT, arXiv:1910.01108; Minitron, arXiv:2407.14679). Which layers matter less than how many: evenly
spaced ones, the first and the last among them, are the usual start. Or those without which the model's loss
grows least are left out (``damage.py``); the width shrinks in ``narrow.py``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evolve.config.values import Block, Choices, IntRange, SearchInt
from evolve.generate.checks import fixed
from evolve.stages.distill.narrow import narrow_problem, narrowed
from evolve.stages.merge.layers import layer_count
from evolve.training.arguments import ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.weights.model import Model


class StudentBlock(Block):
    """What of the model is the student."""

    keep_layers: SearchInt | list[int] | None = Field(default=None, examples=[12, [0, 3, 6, 9]])
    """So many layers, evenly spaced, the first and the last among them; a list: just these; absent: all."""
    keep_by: Literal["even", "damage"] | None = None
    """Which layers a number means: ``even``, as said (absent: the same), or ``damage``: those are left out
    without which the model's loss on the first 64 documents of the data grows least."""
    hidden_size: SearchInt | None = None
    """The width, heads and MLP with it: the first dimensions of the model. Absent: its own."""

    @property
    def searched(self) -> bool:
        """Whether the number of layers or the width is a gene."""
        fixed_width = self.hidden_size is None or isinstance(self.hidden_size, int)
        return not (fixed_width and isinstance(self.keep_layers, int | list | None))

    @property
    def most(self) -> int | list[int] | None:
        """The value that keeps most layers; None: all."""
        keep = self.keep_layers
        return keep if keep is None or isinstance(keep, list) else int(max(ends(keep)))

    def depths(self, whole: int) -> tuple[int, int]:
        """Return the least and the most layers that are kept of ``whole``."""
        if self.keep_layers is None:
            return whole, whole
        if isinstance(self.keep_layers, list):
            return len(self.keep_layers), len(self.keep_layers)
        return int(min(ends(self.keep_layers))), int(max(ends(self.keep_layers)))

    def problems(self) -> list[tuple[tuple[str, ...], str]]:
        """Return what is wrong whatever the model is."""
        keep = self.keep_layers
        if keep is None and self.hidden_size is None:
            return [((), "say what is kept: keep_layers, hidden_size, or both")]
        if self.keep_by is not None and (keep is None or isinstance(keep, list)):
            return [(("keep_by",), "keep_by says which layers a number means: give keep_layers a number")]
        if self.hidden_size is not None and min(ends(self.hidden_size)) < 1:
            return [(("hidden_size",), "hidden_size must be at least 1")]
        if keep is None:
            return []
        if isinstance(keep, list):
            if not keep or keep[0] < 0 or any(one >= two for one, two in pairwise(keep)):
                return [(("keep_layers",), f"list different layers in rising order from 0, got {keep}")]
            return []
        if isinstance(keep, Choices) and not ends(keep):
            return [(("keep_layers",), "choices are whole numbers of layers")]
        if min(ends(keep)) < 1:
            return [(("keep_layers",), "keep at least 1 layer")]
        return []

    def misfits(self, model: Model) -> list[tuple[str, str]]:
        """Return ``(key, message)`` for what the model, or its headers, cannot give."""
        depth, most = layer_count(model), self.most
        found = []
        if most is not None:
            wanted, count = (
                (most[-1] + 1, f"layer {most[-1]}") if isinstance(most, list) else (most, f"{most}")
            )
            if wanted > depth:
                found.append(("keep_layers", f"the model has {depth} layers, and {count} is asked for"))
        for width in self._widths:
            if message := narrow_problem(width, model):
                found.append(("hidden_size", message))
                break
        return found

    @property
    def _widths(self) -> list[int]:
        """Every width that may be asked for."""
        width = self.hidden_size
        if width is None or isinstance(width, int):
            return [] if width is None else [width]
        return list(width.values) if isinstance(width, IntRange) else [int(one) for one in ends(width)]


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


def made_student(
    block: StudentBlock | None, model: Model, *, whole: bool = False, layers: Sequence[int] | None = None
) -> Model:
    """Return the student: the model, or some of its layers one after the other, perhaps narrower.

    Args:
        block: What is kept; None: everything.
        model: The model, or its headers.
        whole: Whether ranges stand for the largest student.
        layers: Which layers a number of them means; None: evenly spaced ones.

    Raises:
        CandidateError: The model has no such layers, or no such part.
    """
    if block is None:
        return model
    from evolve.errors import CandidateError
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.stage import MergeStage

    if misfits := block.misfits(model):
        raise CandidateError("invalid_recipe", f"student.{misfits[0][0]}: {misfits[0][1]}")
    width = block.hidden_size
    if width is not None:
        model = narrowed(model, int(max(ends(width))) if whole else fixed(width))
    keep = block.most if whole else block.keep_layers
    if keep is None:
        return model
    if not isinstance(keep, int | list):
        raise TypeError("the number of layers must be fixed")
    chosen = kept_layers(keep, layer_count(model)) if layers is None else layers
    slices: list[dict[str, Any]] = [
        {"sources": [{"model": "student", "layer_range": [layer, layer + 1]}]} for layer in chosen
    ]
    stack = MergeBlock.model_validate({"merge_method": "passthrough", "slices": slices})
    models = {"student": model}
    return MergeStage.outline(stack, models) if whole else MergeStage.run(stack, models, seed=0)
