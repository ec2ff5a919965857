"""Which layer of the student is compared with which of the teacher, and how widths are made equal.

Layers are numbered from 1; 0 is what the embeddings give, for hidden states alone. The last layer's hidden
states are those after the final norm, as transformers returns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from evolve.training.seeds import seed_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

Pair: TypeAlias = tuple[int, int]
"""A student's layer and a teacher's."""

LayerMapping: TypeAlias = str | tuple[Pair, ...]

NAMED = ("even", "all", "last")


def layer_pairs(mapping: LayerMapping, student: int, teacher: int) -> tuple[Pair, ...]:
    """Return the pairs of layers that a mapping means.

    Args:
        mapping: ``even``: each layer of the student with the one at the same share of the depth, last with
            last; ``all``: layer by layer, of models equally deep; ``last``: the last ones alone; or pairs.
        student: How many layers the student has.
        teacher: How many layers the teacher has.

    Raises:
        ValueError: There are no such layers.
    """
    if mapping == "last":
        return ((student, teacher),)
    if mapping == "all":
        if student != teacher:
            raise ValueError(
                f"layer_mapping all: the student has {student} layers, the teacher {teacher}; use even"
            )
        return tuple((layer, layer) for layer in range(1, student + 1))
    if mapping == "even":
        # The nearest layer, the deeper one of two equally near.
        near = ((layer, (2 * layer * teacher + student) // (2 * student)) for layer in range(1, student + 1))
        return tuple((layer, max(other, 1)) for layer, other in near)
    if isinstance(mapping, str):
        raise ValueError(f"layer_mapping {mapping!r}: use {', '.join(NAMED)}, or pairs of layers")
    for ours, theirs in mapping:
        if not (0 <= ours <= student and 0 <= theirs <= teacher):
            raise ValueError(
                f"layer_mapping [{ours}, {theirs}]: there are layers 0 to {student} and 0 to {teacher}"
            )
    return mapping


def make_projections(pairs: Iterable[Pair], student: int, teacher: int, *, seed: int) -> dict[Pair, Tensor]:
    """Return the matrices that carry a student's hidden states to the teacher's width, to be trained along.

    Each is a random isometry (of the rows or of the columns, whichever are fewer), so that at the start
    lengths and angles are kept as well as they can be. Equal widths need none, and get none.

    Args:
        pairs: Layers that are compared.
        student: The student's width.
        teacher: The teacher's width.
        seed: Of the recipe; each pair draws for itself.

    Returns:
        float32, (teacher, student), on the CPU, for each pair; empty for equal widths.
    """
    import torch

    if student == teacher:
        return {}
    found = {}
    for pair in pairs:
        generator = torch.Generator().manual_seed(seed_of(seed, *pair))
        found[pair] = torch.nn.init.orthogonal_(torch.empty(teacher, student), generator=generator)
    return found


def projected(states: Tensor, pair: Pair, width: int, projections: Mapping[Pair, Tensor]) -> Tensor:
    """Return hidden states in the teacher's width, float32 or float64.

    Args:
        states: (n, the student's width).
        pair: The layers, by which the matrix is found.
        width: The teacher's.
        projections: Matrices (width, the student's width); without one the widths must be equal.

    Raises:
        ValueError: The widths differ and there is no matrix.
    """
    import torch

    from evolve.tensors.divergence import wide

    values = wide(states)
    matrix = projections.get(pair)
    if matrix is None:
        if values.shape[-1] != width:
            raise ValueError(
                f"layers {list(pair)}: states of widths {values.shape[-1]} and {width} need a projection"
            )
        return values
    with torch.autocast(values.device.type, enabled=False):
        return values @ matrix.to(values.dtype).T
