"""What a block merges, in one form: parts, each with the models that are merged with each other in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evolve.config.values import Choices, Parameter, SearchNumber
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.slices import MergeModel, Slice
    from evolve.stages.merge.values import Path

ONLY_MODULE = "default"
"""What mergekit calls the module of an architecture that has one."""


class Entry(NamedTuple):
    """One model of a part.

    Attributes:
        model: Its name.
        parameters: Its own values.
        first: The first of its layers that is used, or None: all of them.
        path: Where it stands in the block, or None for a base that is not listed.
    """

    model: str
    parameters: Mapping[str, Parameter]
    first: int | None
    path: Path | None


class Scope(NamedTuple):
    """Parameters that hold for several models.

    Attributes:
        path: Where the mapping stands in the block.
        parameters: The values.
    """

    path: Path
    parameters: Mapping[str, Parameter]


class Part(NamedTuple):
    """Models that are merged with each other: whole ones, or the layers of one slice.

    Attributes:
        path: Where it stands: () for whole models, such as ``("slices", 0)`` for a slice.
        entries: The models in the order of the config. A base that is not listed comes last.
        base: Name of the base, or None for a method without one.
        scopes: Values for the part, the nearest first: slice, module, whole merge.
        layers: Layers of the result that it makes, or None: all.
        enabled: Whether the result has these layers.
        scale: Factor of the hidden state that enters it.
    """

    path: Path
    entries: tuple[Entry, ...]
    base: str | None
    scopes: tuple[Scope, ...]
    layers: int | None = None
    enabled: bool | Choices = True
    scale: SearchNumber = 1.0

    @property
    def others(self) -> tuple[Entry, ...]:
        """The models that the method merges: all but the base."""
        return tuple(entry for entry in self.entries if entry.model != self.base)

    @property
    def base_entry(self) -> Entry | None:
        """The base."""
        return next((entry for entry in self.entries if entry.model == self.base), None)

    @property
    def label(self) -> str:
        """How a message calls it."""
        return ".".join(map(str, self.path)) or "the merge"

    def sources(self, entry: Entry | None, name: str) -> list[Parameter | None]:
        """Return the values of a parameter for an entry (None: for all), those that go first in front."""
        own = [] if entry is None else [entry.parameters.get(name)]
        return [*own, *(scope.parameters.get(name) for scope in self.scopes)]


def parts_of(block: MergeBlock) -> tuple[Part, ...]:
    """Return the parts of a block: one for whole models, else one for each slice, also one that is off."""
    whole = Scope(("parameters",), block.parameters)
    if block.models is not None:
        return (_whole(block, block.models, (), (whole,)),)
    if block.slices is not None:
        return tuple(_sliced(block, block.slices, (), (whole,)))
    for name, module in (block.modules or {}).items():
        path: Path = ("modules", name)
        scopes = (Scope((*path, "parameters"), module.parameters), whole)
        if module.models is not None:
            return (_whole(block, module.models, path, scopes),)
        return tuple(_sliced(block, module.slices or [], path, scopes))
    return ()


def _whole(block: MergeBlock, models: Sequence[MergeModel], path: Path, scopes: tuple[Scope, ...]) -> Part:
    entries = [
        Entry(entry.model, entry.parameters, None, (*path, "models", index))
        for index, entry in enumerate(models)
    ]
    base = block.base_model if block.has_base else None
    if base is not None and all(entry.model != base for entry in entries):
        entries.append(Entry(base, {}, None, None))
    return Part(path, tuple(entries), base, scopes)


def _sliced(
    block: MergeBlock, slices: Sequence[Slice], path: Path, scopes: tuple[Scope, ...]
) -> Iterator[Part]:
    for number, piece in enumerate(slices):
        here: Path = (*path, "slices", number)
        entries = [
            Entry(source.model, source.parameters, source.layer_range[0], (*here, "sources", index))
            for index, source in enumerate(piece.sources)
        ]
        first, end = piece.sources[0].layer_range
        yield Part(
            path=here,
            entries=tuple(entries),
            base=(piece.base_model or block.base_model) if block.has_base else None,
            scopes=(Scope((*here, "parameters"), piece.parameters), *scopes),
            layers=end - first,
            enabled=piece.enabled,
            scale=piece.scale,
        )
