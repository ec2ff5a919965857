"""What the headers of the input models say about a merge, before any weight is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from evolve.errors import some
from evolve.registry import MERGE_METHODS, did_you_mean
from evolve.stages.merge.layers import component_names
from evolve.stages.merge.stacked import stacked_config
from evolve.stages.merge.values import always, catches_all, filters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evolve.config.values import Filtered, Parameter
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.layout import Layout
    from evolve.stages.merge.parts import Entry, Part
    from evolve.stages.merge.values import Path
    from evolve.weights.model import Model, TensorSpec

_FLOATS = ("float32", "bfloat16", "float16", "float64")
_COPIED = ("int64", "int32", "int16", "int8", "uint8", "bool")
_HEADS = ("lm_head", "embed_out")


def merged(dtype: str) -> bool:
    """Whether tensors of this type are merged; others are copied."""
    return dtype in _FLOATS


def type_problems(block: MergeBlock, layout: Layout, models: Mapping[str, Model]) -> list[str]:
    """Return which tensors have types that cannot be merged. The models fit each other."""
    found = []
    for tensor, place in layout.places.items():
        types = {model: models[model].specs[name].dtype for model, name in place.sources()}
        listed = ", ".join(f"{dtype} in {name}" for name, dtype in types.items())
        if not all(dtype in _FLOATS for dtype in types.values()):
            if len(set(types.values())) > 1 or not set(types.values()) <= set(_COPIED):
                found.append(f"{tensor} cannot be merged ({listed}); give unquantized models")
        elif "float64" in types.values() and block.dtype is None and block.out_dtype is None:
            found.append(f"{tensor} is float64 ({listed}) and merging is done in float32; set dtype: float32")
    return found[:10]


def output_types(block: MergeBlock, layout: Layout, models: Mapping[str, Model]) -> dict[str, str]:
    """Return the type of each tensor of the result."""
    forced = block.out_dtype or block.dtype
    types = {}
    for tensor, place in layout.places.items():
        found = {models[model].specs[name].dtype for model, name in place.sources()}
        if not merged(next(iter(found))):
            types[tensor] = next(iter(found))
        elif forced is not None:
            types[tensor] = forced
        else:
            types[tensor] = next(iter(found)) if len(found) == 1 else "float32"
    return types


def output_specs(
    layout: Layout, types: Mapping[str, str], models: Mapping[str, Model]
) -> dict[str, TensorSpec]:
    """Return shape and type of each tensor of the result."""
    from evolve.weights.model import TensorSpec

    specs = {}
    for tensor, place in layout.places.items():
        model, name = next(place.sources())
        specs[tensor] = TensorSpec(models[model].specs[name].shape, types[tensor])
    return specs


def output_config(
    layout: Layout, specs: Mapping[str, TensorSpec], models: Mapping[str, Model]
) -> dict[str, Any]:
    """Return the reference's config, with the layers that were chosen and the type that most weights have.

    Raises:
        CandidateError: The config cannot describe such layers.
    """
    count: Counter[str] = Counter()
    for spec in specs.values():
        if merged(spec.dtype):
            count[spec.dtype] += spec.numel
    config = stacked_config(layout, models) if layout.sliced else dict(layout.reference.config)
    if count:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config.pop("dtype", None)
        config[key] = count.most_common(1)[0][0]
    return config


def filter_problems(layout: Layout) -> list[tuple[Path, str]]:
    """Return the filters that let no tensor through."""
    found: list[tuple[Path, str]] = []
    for path, entry, names in _all_filters(layout):
        text = entry.filter or ""
        if catches_all(entry) or any(text in tensor for tensor in names):
            continue
        if layout.reference.tied and any(text in head or head in text for head in _HEADS):
            hint = " (the head is tied to the embedding and has no tensor of its own; remove the filter)"
        elif any(text in tensor for tensor in layout.places):
            hint = " in this slice"
        else:
            hint = did_you_mean(text, component_names(layout.places))
        found.append((path, f"no tensor's name contains {text!r}{hint}"))
    return found


def _by_part(layout: Layout) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for tensor, place in layout.places.items():
        found.setdefault(place.part.path, []).append(tensor)
    return found


def _by_scope(layout: Layout) -> dict[Path, list[str]]:
    """Return for each mapping of parameters that several models share the tensors that it holds for."""
    found: dict[Path, list[str]] = {}
    tensors = _by_part(layout)
    for part in layout.parts:
        for scope in part.scopes:
            found.setdefault(scope.path, []).extend(tensors.get(part.path, []))
    return found


def _all_filters(layout: Layout) -> Iterator[tuple[Path, Filtered, Sequence[str]]]:
    by_scope = _by_scope(layout)
    scopes = {scope.path: scope.parameters for part in layout.parts for scope in reversed(part.scopes)}
    for path, parameters in scopes.items():
        for inner, entry in _filters_in(parameters):
            yield (*path, *inner), entry, by_scope[path]
    tensors = _by_part(layout)
    for part in layout.parts:
        for model in part.entries:
            for inner, entry in _filters_in(model.parameters):
                yield (*(model.path or ()), "parameters", *inner), entry, tensors.get(part.path, [])


def _filters_in(parameters: Mapping[str, Parameter]) -> Iterator[tuple[Path, Filtered]]:
    for name, value in parameters.items():
        for index, entry in enumerate(filters(value)):
            yield (name, index, "filter"), entry


def missing_values(block: MergeBlock, layout: Layout) -> list[tuple[Path, str]]:
    """Return the parameters that must be given and that no filter gives to some tensor."""
    method = MERGE_METHODS.load(block.merge_method)
    found: list[tuple[Path, str]] = []
    tensors = _by_part(layout)
    for part in layout.parts:
        names = tensors.get(part.path, [])
        for param in method.shared:
            if param.default is None:
                path = _given_at(part, None, param.name)
                found += _uncovered(param.name, part.sources(None, param.name), names, path)
        for entry in part.others:
            for param in method.per_model:
                if param.default is None:
                    sources = part.sources(entry, param.name)
                    found += _uncovered(param.name, sources, names, _given_at(part, entry, param.name))
    return list(dict.fromkeys(found))


def _given_at(part: Part, entry: Entry | None, name: str) -> Path:
    """Return the path of the nearest value of a parameter."""
    if entry is not None and name in entry.parameters:
        return (*(entry.path or ()), "parameters", name)
    return next(((*scope.path, name) for scope in part.scopes if name in scope.parameters), part.path)


def _uncovered(
    name: str, sources: list[Parameter | None], tensors: Sequence[str], path: Path
) -> list[tuple[Path, str]]:
    given = [source for source in sources if source is not None]
    if not given or any(always(source) for source in given):
        return []  # not given at all: the block's own problems say so
    left = [
        tensor
        for tensor in tensors
        if not any((entry.filter or "") in tensor for source in given for entry in filters(source))
    ]
    if not left:
        return []
    return [(path, f"no {name} for {some(sorted(left))}; end the list with a value without a filter")]
