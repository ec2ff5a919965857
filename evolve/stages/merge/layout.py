"""Where each tensor of the result comes from: which part of the block, which layer of each of its models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from evolve.stages.merge.layers import LayerTensor, before_layers, depths, split_name
from evolve.tensors.gradient import depth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.parts import Entry, Part
    from evolve.weights.model import Model


class Place(NamedTuple):
    """Where one tensor of the result comes from.

    Attributes:
        name: Its name in the result.
        part: The models that it is merged from.
        t: Its depth, at which gradients are read.
        tensor: The name taken apart, of a tensor in a layer.
        offset: Position of its layer in the slice.
    """

    name: str
    part: Part
    t: float
    tensor: LayerTensor | None = None
    offset: int = 0

    def source(self, entry: Entry) -> str:
        """Return the name of the tensor in one of the part's models."""
        if entry.first is None or self.tensor is None:
            return self.name
        return self.tensor._replace(layer=entry.first + self.offset).name

    def sources(self) -> Iterator[tuple[str, str]]:
        """Yield ``(model, tensor name in it)`` for each model of the part."""
        for entry in self.part.entries:
            yield entry.model, self.source(entry)


@dataclass(frozen=True)
class Layout:
    """The tensors of the result and where they come from.

    Attributes:
        parts: The parts that are on.
        places: Name of a tensor of the result to its place, embeddings first, head last.
        reference: The model that gives the config.
        stack: What layers are called in the model, such as ``model.layers``; "" for whole models.
    """

    parts: tuple[Part, ...]
    places: Mapping[str, Place]
    reference: Model
    stack: str = ""

    @property
    def sliced(self) -> bool:
        """Whether the result is made of listed layers."""
        return self.parts[0].layers is not None

    def layers(self) -> Iterator[tuple[Part, int]]:
        """Yield for each layer of the result its part and its position in it."""
        for part in self.parts:
            for offset in range(part.layers or 0):
                yield part, offset


def make_layout(block: MergeBlock, models: Mapping[str, Model]) -> Layout:
    """Return where each tensor of the result comes from.

    Of a slice that the search may switch off it is taken to be on. The models are known to fit: see
    :func:`evolve.stages.merge.fit.problems`.

    Args:
        block: At least one of its parts is on.
        models: Name to model, all that the block names.
    """
    parts = [part for part in block.parts if part.enabled is not False]
    reference = models[block.reference]
    if parts[0].layers is None:
        at = depths(reference)
        places = {name: Place(name, parts[0], at(name)) for name in reference.specs}
        return Layout(tuple(parts), places, reference)
    first = models[parts[0].entries[0].model]
    stack = next((split.stack for name in first.specs if (split := split_name(name)) is not None), "")
    places = {place.name: place for place in _sliced(parts, models)}
    return Layout(tuple(parts), places, reference, stack)


def _sliced(parts: Sequence[Part], models: Mapping[str, Model]) -> Iterator[Place]:
    """Embeddings follow the first slice, last norm and head the last one, as in mergekit."""
    first, last = parts[0], parts[-1]
    outer = [name for name in models[first.entries[0].model].specs if split_name(name) is None]
    yield from (Place(name, first, 0.0) for name in outer if before_layers(name))
    tensors = {
        name: by_layer(models[name]) for name in dict.fromkeys(part.entries[0].model for part in parts)
    }
    start = 0
    for part in parts:
        count, entry = part.layers or 0, part.entries[0]
        for offset in range(count):
            for tensor in tensors[entry.model].get((entry.first or 0) + offset, ()):
                moved = tensor._replace(layer=start + offset)
                yield Place(moved.name, part, depth(offset, count), moved, offset)
        start += count
    yield from (Place(name, last, 0.0) for name in outer if not before_layers(name))


def by_layer(model: Model) -> dict[int, list[LayerTensor]]:
    """Return the tensors of each layer."""
    found: dict[int, list[LayerTensor]] = {}
    for name in model.specs:
        if (tensor := split_name(name)) is not None:
            found.setdefault(tensor.layer, []).append(tensor)
    return found
