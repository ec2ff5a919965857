"""The config of a model whose layers were chosen: its depth, and what it says of each layer.

Some architectures have layers of several kinds (sliding and full attention, layers without positions, dense
and sparse MLPs). Their configs list the kind of each layer, or a rule by which its place decides. After
slices a layer stands in another place, so the list is written anew, and what transformers would build from
it is compared with what the layer was: a layer must do what it did.
"""

from __future__ import annotations

import copy
import functools
import json
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.stages.merge.layers import COUNTS, stated_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evolve.stages.merge.layout import Layout
    from evolve.weights.model import Model

Facts = tuple[tuple[str, Any], ...]

_SILENT = frozenset({"architectures", "suppress_tokens", "begin_suppress_tokens"})
"""Lists of a config that have nothing to do with layers, whatever their length."""


def stacked_config(layout: Layout, models: Mapping[str, Model]) -> dict[str, Any]:
    """Return the reference's config with the depth and the per-layer lists of the chosen layers.

    Raises:
        CandidateError: The config cannot say what the chosen layers are.
    """
    config = copy.deepcopy(dict(layout.reference.config))
    wanted = _wanted(layout, models)
    count = sum(1 for _ in layout.layers())
    for key in COUNTS:
        if key in config:
            config[key] = count
    for key, values in wanted.items():
        if key in config:
            config[key] = _like(config[key], values)
    default = _per_layer(config)
    for key, values in wanted.items():
        if key in default and list(default[key]) != values:
            config[key] = values
    return config


def _wanted(layout: Layout, models: Mapping[str, Model]) -> dict[str, list[Any]]:
    """Return each per-layer list of the result, out of the lists of the models that its layers come from."""
    lists: dict[str, dict[str, Any]] = {}
    wanted: dict[str, list[Any]] = {}
    for number, (part, offset) in enumerate(layout.layers()):
        found = []
        for entry in part.entries:
            if entry.model not in lists:
                lists[entry.model] = _per_layer(models[entry.model].config)
            own = lists[entry.model]
            found.append({key: values[(entry.first or 0) + offset] for key, values in own.items()})
        for entry, other in zip(part.entries, found, strict=True):
            for key in found[0].keys() | other.keys():
                if found[0].get(key) != other.get(key):
                    raise CandidateError(
                        "invalid_recipe",
                        f"{part.label}: layer {(entry.first or 0) + offset} of {entry.model} has {key} "
                        f"{other.get(key)}, layer {(part.entries[0].first or 0) + offset} of "
                        f"{part.entries[0].model} has {found[0].get(key)}: layers of different kinds cannot "
                        "be merged",
                    )
        for key, value in found[0].items():
            wanted.setdefault(key, [None] * number).append(value)
    return wanted


def _like(old: Any, values: list[Any]) -> Any:
    return "".join(values) if isinstance(old, str) else values


def _per_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lists that have one value for each layer, those that transformers works out included."""
    count = stated_layers(config)
    whole = {**_known(config), **config}
    return {
        key: value for key, value in whole.items() if _may_list_layers(key, value) and len(value) == count
    }


def _may_list_layers(key: str, value: Any) -> bool:
    if key in _SILENT or key.endswith(("token_id", "token_ids")):
        return False
    return isinstance(value, list | tuple) or (isinstance(value, str) and "pattern" in key)


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers makes of a config, empty where it does not know the architecture."""
    made = _made(config)
    found: dict[str, Any] = {} if made is None else made.to_dict()
    return found


def _made(config: Mapping[str, Any]) -> Any:
    """Return transformers' config object, or None where it does not know the architecture."""
    if config.get("model_type") is None:
        return None
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(config)))
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise _refused(error) from error


def _refused(error: Exception) -> CandidateError:
    return CandidateError("invalid_recipe", f"config.json of such layers: {' '.join(str(error).split())}")


def changed_layers(layout: Layout, models: Mapping[str, Model], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what a layer of the result would do something else than where it comes from.

    Asked of transformers, on models without storage. Nothing of an architecture that it does not know.
    """
    result = layer_facts(_key(config), layout.stack)
    if result is None:
        return
    for number, (part, offset) in enumerate(layout.layers()):
        for entry in part.entries:
            was = layer_facts(_key(models[entry.model].config), layout.stack)
            layer = (entry.first or 0) + offset
            if was is None or number >= len(result) or was[layer] == result[number]:
                continue
            old, new = dict(was[layer]), dict(result[number])
            name = next(key for key in old | new if old.get(key) != new.get(key))
            yield (
                f"layer {layer} of {entry.model} cannot stand in place {number}: {name} would be "
                f"{new.get(name)} instead of {old.get(name)}"
            )


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


@functools.lru_cache(maxsize=16)
def layer_facts(config: str, stack: str) -> tuple[Facts, ...] | None:
    """Return for each layer the plain attributes of its modules, which its place may have decided.

    Args:
        config: A config as JSON.
        stack: What its layers are called, such as ``model.layers``.

    Returns:
        None where transformers does not know the architecture or the stack.
    """
    import torch
    from transformers import AutoModelForCausalLM

    made = _made(json.loads(config))
    if made is None or type(made) not in AutoModelForCausalLM._model_mapping:
        return None
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(made)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise _refused(error) from error
    modules = dict(skeleton.named_modules())
    layers = modules.get(stack, modules.get(f"{skeleton.base_model_prefix}.{stack}"))
    return None if layers is None else tuple(_facts(layer) for layer in layers)


def _facts(layer: Any) -> Facts:
    found: list[tuple[str, Any]] = []
    for path, module in layer.named_modules():
        found.append((f"{path}: class", type(module).__name__))
        for name, value in vars(module).items():
            if isinstance(value, bool | int | float | str | None) and not _is_position(name):
                found.append((".".join(filter(None, (path, name))), value))
        for name, tensor in module.named_parameters(recurse=False):
            found.append((f"{path}.{name}: shape", tuple(tensor.shape)))
    return tuple(found)


def _is_position(name: str) -> bool:
    return name.startswith("_") or name in {"layer_idx", "layer_id", "layer_number", "training"}
