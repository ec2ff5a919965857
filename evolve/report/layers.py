"""A recipe layer by layer: what gradients over depth say at each, and where stacked layers are from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evolve.types import Recipe


@dataclass(frozen=True)
class Profile:
    """One parameter over the depth.

    Attributes:
        model: The model that it belongs to, or the stage where it is one for all.
        name: Name of the parameter, with the filter behind it where there is one.
        values: Its value at each layer of the result, the first layer first; NaN at layers that it has no
            part in, as those that other models give to a stack.
    """

    model: str
    name: str
    values: tuple[float, ...]


class Source(NamedTuple):
    """A layer of a model."""

    model: str
    layer: int


@dataclass(frozen=True)
class Stacked:
    """One layer of a result whose layers were chosen.

    Attributes:
        sources: The layers that it is merged from, mostly one.
        scale: Factor of the hidden state that enters it: that of its slice at the first layer, else 1.
    """

    sources: tuple[Source, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Stacking:
    """The layers of a result that a merge has stacked.

    Attributes:
        stage: Name of the stage, or its kind.
        layers: The first layer first.
    """

    stage: str
    layers: tuple[Stacked, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that give layers, in the order in which they come first."""
        return tuple(dict.fromkeys(source.model for layer in self.layers for source in layer.sources))

    @property
    def runs(self) -> list[tuple[int, int]]:
        """First and last layer of each run: its layers follow each other in every source, nothing between."""
        found: list[tuple[int, int]] = []
        for place, layer in enumerate(self.layers):
            follows = place and layer.scale == 1.0 and layer.sources == _next(self.layers[place - 1])
            found[-1:] = [(found[-1][0], place)] if follows else [*found[-1:], (place, place)]
        return found


def _next(layer: Stacked) -> tuple[Source, ...]:
    return tuple(Source(model, number + 1) for model, number in layer.sources)


def stackings(recipe: Recipe) -> list[Stacking]:
    """Return the layers of every merge of a recipe that stacks layers.

    Args:
        recipe: All values fixed; slices that are off are not in it.
    """
    found = []
    for stage, block in _merges(recipe):
        layers: list[Stacked] = []
        for piece in _slices(block) or ():
            scale = float(piece.get("scale", 1.0))
            for offset in range(_length(piece)):
                sources = [
                    Source(str(source["model"]), int(source["layer_range"][0]) + offset)
                    for source in piece["sources"]
                ]
                layers.append(Stacked(tuple(sources), 1.0 if offset else scale))
        if layers:
            found.append(Stacking(stage, tuple(layers)))
    return found


def profiles(recipe: Recipe, layers: int) -> list[Profile]:
    """Return every numeric parameter of every merge in a recipe.

    Args:
        recipe: All values fixed.
        layers: How many layers the models have; a stack of layers has as many as were chosen.
    """
    found: list[Profile] = []
    for stage, block in _merges(recipe):
        pieces = _slices(block)
        if pieces is not None:
            found += _of_slices(stage, block, pieces)
            continue
        module = _module(block)
        owners = [(str(model.get("model")), model.get("parameters")) for model in _models(block)]
        for owner, parameters in [
            *owners,
            (f"all ({stage})", {**(block.get("parameters") or {}), **(module.get("parameters") or {})}),
        ]:
            for name, values in _values(parameters, layers):
                found.append(Profile(owner, name, values))
    return found


def _of_slices(
    stage: str, block: Mapping[str, Any], pieces: Sequence[Mapping[str, Any]]
) -> Iterator[Profile]:
    """Yield the parameters of a stack: depth runs from 0 to 1 in each slice, as the merge reads them."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    shared = {**(block.get("parameters") or {}), **(_module(block).get("parameters") or {})}
    start = 0
    for piece in pieces:
        count = _length(piece)
        owners = [(str(source["model"]), source.get("parameters")) for source in piece["sources"]]
        for owner, parameters in [*owners, (f"all ({stage})", {**shared, **(piece.get("parameters") or {})})]:
            for name, values in _values(parameters, count):
                row = found.setdefault((owner, name), {})
                row |= {start + offset: value for offset, value in enumerate(values)}
        start += count
    for (owner, name), row in found.items():
        yield Profile(owner, name, tuple(row.get(layer, math.nan) for layer in range(start)))


def _merges(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each stage is called, and its block."""
    pipeline = recipe.pipeline
    for number, entry in enumerate(pipeline):
        for kind, block in entry.items():
            yield block.get("name") or (kind if len(pipeline) == 1 else f"{kind} {number + 1}"), block


def _module(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the one module of a merge that is written with modules, or an empty mapping."""
    modules = block.get("modules")
    return next(iter(modules.values()), {}) if isinstance(modules, dict) else {}


def _slices(block: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the slices of a merge, or None: it merges whole models."""
    pieces = block.get("slices") or _module(block).get("slices")
    return [piece for piece in pieces if piece.get("enabled", True)] if pieces else None


def _length(piece: Mapping[str, Any]) -> int:
    first, end = piece["sources"][0]["layer_range"]
    return int(end - first)


def _models(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = block.get("models") or _module(block).get("models")
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []


def _values(parameters: Any, layers: int) -> Iterator[tuple[str, tuple[float, ...]]]:
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        parts = value if isinstance(value, list) and any(isinstance(part, dict) for part in value) else None
        if parts is None:
            points = [("", value)]
        else:
            points = [(part.get("filter") or "the rest", part.get("value")) for part in parts]
        for which, one in points:
            over = _over_depth(one, layers)
            if over is not None:
                yield f"{name} ({which})" if which else name, over


def _over_depth(value: Any, layers: int) -> tuple[float, ...] | None:
    from evolve.tensors.gradient import at_depth, depth

    points: Sequence[Any] = value if isinstance(value, list) else [value]
    if not points or not all(isinstance(p, int | float) and not isinstance(p, bool) for p in points):
        return None
    return tuple(at_depth(points, depth(layer, layers)) for layer in range(layers))


def cells(stacking: Stacking) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table: a row a run of layers."""
    rows = []
    for first, last in stacking.runs:
        layer, count = stacking.layers[first], last - first
        sources = " + ".join(f"{model} {_range(number, number + count)}" for model, number in layer.sources)
        rows.append([_range(first, last), sources, "" if layer.scale == 1.0 else f"{layer.scale:.4g}"])
    return ["layers of the result", "are layers", "hidden state that enters, times"], rows


def described(stacking: Stacking, *, most: int = 12) -> str:
    """Return one line, such as ``beasts 0-2, x 0.93 towns 1``; at most so many runs of layers."""
    _, rows = cells(stacking)
    words = [f"x {scale} {sources}" if scale else sources for _, sources, scale in rows]
    rest = len(words) - most
    told = ", ".join(words[:most]) + (f", and {rest} more" if rest > 0 else "")
    return f"{len(stacking.layers)}: {told}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def to_json(found: Sequence[Stacking]) -> list[dict[str, Any]]:
    """Return stackings for programs."""
    return [
        {
            "stage": one.stage,
            "layers": [
                {"sources": [source._asdict() for source in layer.sources], "scale": layer.scale}
                for layer in one.layers
            ],
        }
        for one in found
    ]
