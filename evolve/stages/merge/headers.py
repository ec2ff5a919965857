"""What the headers of the input models say about a merge, before any weight is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from evolve.registry import MERGE_METHODS, did_you_mean
from evolve.stages.merge.layers import component_names
from evolve.stages.merge.values import always, catches_all, filters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evolve.config.values import Filtered, Parameter
    from evolve.stages.merge.block import MergeBlock
    from evolve.weights.model import Model

_FLOATS = ("float32", "bfloat16", "float16", "float64")
_COPIED = ("int64", "int32", "int16", "int8", "uint8", "bool")
_HEADS = ("lm_head", "embed_out")


def merged(dtype: str) -> bool:
    """Whether tensors of this type are merged; others are copied."""
    return dtype in _FLOATS


def differing_tensors(models: Mapping[str, Model]) -> list[str]:
    """Return, for each model, how its tensors' names and shapes differ from those of the first."""
    (first, reference), *others = models.items()
    found = []
    for name, model in others:
        missing = reference.specs.keys() - model.specs.keys()
        extra = model.specs.keys() - reference.specs.keys()
        if missing:
            found.append(f"{name} lacks {_some(missing)}, which {first} has")
        if extra:
            found.append(f"{name} has {_some(extra)}, which {first} lacks")
        for tensor in reference.specs.keys() & model.specs.keys():
            shapes = reference.specs[tensor].shape, model.specs[tensor].shape
            if shapes[0] != shapes[1]:
                found.append(f"{tensor} is {list(shapes[0])} in {first} and {list(shapes[1])} in {name}")
    return sorted(found)


def type_problems(block: MergeBlock, models: Mapping[str, Model]) -> list[str]:
    """Return which tensors have types that cannot be merged. The models have the same tensors."""
    found = []
    for tensor in next(iter(models.values())).specs:
        types = {name: model.specs[tensor].dtype for name, model in models.items()}
        listed = ", ".join(f"{dtype} in {name}" for name, dtype in types.items())
        if not all(dtype in _FLOATS for dtype in types.values()):
            if len(set(types.values())) > 1 or not set(types.values()) <= set(_COPIED):
                found.append(f"{tensor} cannot be merged ({listed}); give unquantized models")
        elif "float64" in types.values() and block.dtype is None and block.out_dtype is None:
            found.append(f"{tensor} is float64 ({listed}) and merging is done in float32; set dtype: float32")
    return found[:10]


def output_types(block: MergeBlock, models: Mapping[str, Model]) -> dict[str, str]:
    """Return the type of each tensor of the result."""
    forced = block.out_dtype or block.dtype
    types = {}
    for tensor in next(iter(models.values())).specs:
        found = {model.specs[tensor].dtype for model in models.values()}
        if not merged(next(iter(found))):
            types[tensor] = next(iter(found))
        elif forced is not None:
            types[tensor] = forced
        else:
            types[tensor] = next(iter(found)) if len(found) == 1 else "float32"
    return types


def output_config(reference: Model, types: Mapping[str, str]) -> dict[str, Any]:
    """Return the reference's config with the type that most weights of the result have."""
    count: Counter[str] = Counter()
    for tensor, spec in reference.specs.items():
        if merged(types[tensor]):
            count[types[tensor]] += spec.numel
    config = dict(reference.config)
    if count:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config.pop("dtype", None)
        config[key] = count.most_common(1)[0][0]
    return config


def filter_problems(block: MergeBlock, reference: Model) -> list[tuple[str, str]]:
    """Return the filters that let no tensor through."""
    found = []
    for path, entry in _all_filters(block):
        text = entry.filter or ""
        if catches_all(entry) or any(text in tensor for tensor in reference.specs):
            continue
        if reference.tied and any(text in head or head in text for head in _HEADS):
            hint = " (the head is tied to the embedding and has no tensor of its own; remove the filter)"
        else:
            hint = did_you_mean(text, component_names(reference))
        found.append((path, f"no tensor's name contains {text!r}{hint}"))
    return found


def _all_filters(block: MergeBlock) -> Iterator[tuple[str, Filtered]]:
    scopes = [("parameters", block.parameters)]
    scopes += [(f"models.{index}.parameters", entry.parameters) for index, entry in enumerate(block.models)]
    for scope, parameters in scopes:
        for name, value in parameters.items():
            for index, entry in enumerate(filters(value)):
                yield f"{scope}.{name}.{index}.filter", entry


def missing_values(block: MergeBlock, reference: Model) -> list[tuple[str, str]]:
    """Return the parameters that must be given and that no filter gives to some tensor."""
    method = MERGE_METHODS.load(block.merge_method)
    found = []
    for param in method.shared:
        if param.default is None:
            sources = [block.parameters.get(param.name)]
            found += _uncovered(param.name, sources, reference, f"parameters.{param.name}")
    for index, entry in enumerate(block.models):
        for param in method.per_model:
            if param.default is None and entry in block.others:
                sources = [entry.parameters.get(param.name), block.parameters.get(param.name)]
                own = f"models.{index}.parameters" if param.name in entry.parameters else "parameters"
                found += _uncovered(param.name, sources, reference, f"{own}.{param.name}")
    return found


def _uncovered(
    name: str, sources: list[Parameter | None], reference: Model, path: str
) -> list[tuple[str, str]]:
    given = [source for source in sources if source is not None]
    if not given or any(always(source) for source in given):
        return []  # not given at all: the block's own problems say so
    left = [
        tensor
        for tensor in reference.specs
        if not any((entry.filter or "") in tensor for source in given for entry in filters(source))
    ]
    if not left:
        return []
    return [(path, f"no {name} for {_some(left)}; end the list with a value without a filter")]


def _some(names: Any) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
