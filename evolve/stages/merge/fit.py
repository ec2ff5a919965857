"""Do the models of a merge fit each other, and does each slice find its layers? Reads headers only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evolve.errors import some
from evolve.stages.merge.layers import (
    COUNTS,
    LayerTensor,
    layer_count,
    split_name,
    stacks,
    stated_layers,
)
from evolve.stages.merge.layout import by_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.parts import Entry, Part
    from evolve.stages.merge.values import Path
    from evolve.weights.model import Model

Found = list[tuple["Path", str]]


def outside(model: Model) -> Model:
    """Return a model without its layers: what models must have in common whose layers are stacked."""
    depth = stated_layers(model.config)
    config = {
        key: value
        for key, value in model.config.items()
        if key not in COUNTS and not (isinstance(value, list) and len(value) == depth)
    }
    specs = {name: spec for name, spec in model.specs.items() if split_name(name) is None}
    return replace(model, config=config, specs=specs)


def differing_tensors(models: Mapping[str, Model]) -> list[str]:
    """Return, for each model, how its tensors' names and shapes differ from those of the first."""
    (first, reference), *others = models.items()
    found = []
    for name, model in others:
        missing = reference.specs.keys() - model.specs.keys()
        extra = model.specs.keys() - reference.specs.keys()
        if missing:
            found.append(f"{name} lacks {some(sorted(missing))}, which {first} has")
        if extra:
            found.append(f"{name} has {some(sorted(extra))}, which {first} lacks")
        for tensor in reference.specs.keys() & model.specs.keys():
            shapes = reference.specs[tensor].shape, model.specs[tensor].shape
            if shapes[0] != shapes[1]:
                found.append(f"{tensor} is {list(shapes[0])} in {first} and {list(shapes[1])} in {name}")
    return sorted(found)


def layer_problems(block: MergeBlock, models: Mapping[str, Model]) -> Found:
    """Return why the listed layers cannot be merged and stacked; nothing for a merge of whole models."""
    parts = [part for part in block.parts if part.enabled is not False and part.layers is not None]
    used = {entry.model: models[entry.model] for part in parts for entry in part.entries}
    found = [problem for name, model in used.items() for problem in _unfit(name, model, block.key)]
    if found:
        return found
    tensors = {name: by_layer(model) for name, model in used.items()}
    names = {name: next(iter(stacks(model))) for name, model in used.items()}
    if len(set(names.values())) > 1:
        called = ", ".join(f"{stack} in {name}" for name, stack in names.items())
        return [(block.key, f"the layers have different names: {called}")]
    found = [problem for part in parts for problem in _beyond(part, used)]
    if found:
        return found
    for part in parts:
        found += _unlike(part, used, tensors)
    return found


def _unfit(name: str, model: Model, key: Path) -> Iterator[tuple[Path, str]]:
    own = stacks(model)
    if len(own) != 1:
        listed = ", ".join(own) or "none"
        yield key, f"{name} must have one stack of layers, and has {listed}; list it as a whole under models"
    elif stated_layers(model.config) is None:
        yield key, f"config.json of {name} states no number of layers ({', '.join(COUNTS)})"
    elif beyond := _unlisted(model):
        yield (
            key,
            f"{name} has {some(sorted(beyond))} beyond the {layer_count(model)} layers that its config.json "
            "states; no layer_range can list them, and nothing is dropped silently",
        )


def _unlisted(model: Model) -> list[str]:
    count = layer_count(model)
    split = ((name, split_name(name)) for name in model.specs)
    return [name for name, tensor in split if tensor is not None and tensor.layer >= count]


def _beyond(part: Part, models: Mapping[str, Model]) -> Iterator[tuple[Path, str]]:
    for entry in part.entries:
        end, count = (entry.first or 0) + (part.layers or 0), layer_count(models[entry.model])
        if end > count:
            yield (*(entry.path or ()), "layer_range"), f"{entry.model} has {count} layers, not {end}"


def _unlike(
    part: Part, models: Mapping[str, Model], tensors: Mapping[str, Mapping[int, list[LayerTensor]]]
) -> Found:
    """Compare the layers that are merged with each other with those of the part's first model."""
    found: Found = []
    lead, *others = part.entries
    for entry in others:
        for offset in range(part.layers or 0):
            ours, theirs = (
                {
                    tensor.rest: models[one.model].specs[tensor.name].shape
                    for tensor in tensors[one.model].get((one.first or 0) + offset, ())
                }
                for one in (lead, entry)
            )
            if ours != theirs:
                found.append((entry.path or part.path, _difference(lead, entry, offset, ours, theirs)))
                break
    return found


def _difference(
    lead: Entry,
    entry: Entry,
    offset: int,
    ours: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, tuple[int, ...]],
) -> str:
    pair = [f"layer {(one.first or 0) + offset} of {one.model}" for one in (entry, lead)]
    if missing := ours.keys() - theirs.keys():
        return f"{pair[0]} lacks {some(sorted(missing))}, which {pair[1]} has"
    if extra := theirs.keys() - ours.keys():
        return f"{pair[0]} has {some(sorted(extra))}, which {pair[1]} lacks"
    name = next(name for name, shape in ours.items() if theirs[name] != shape)
    return f"{name} is {list(theirs[name])} in {pair[0]} and {list(ours[name])} in {pair[1]}"
