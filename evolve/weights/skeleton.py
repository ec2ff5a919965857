"""The tensors that an architecture has: asked of transformers, on a model without storage.

Files and memory differ in names and sometimes in layout (experts are single in the file and fused in
memory), so every answer is given in both.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import ModelError, some
from evolve.weights.files import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.weights.model import Model, TensorSpec


Shapes: TypeAlias = "dict[str, tuple[int, ...]]"
Parts: TypeAlias = "dict[str, tuple[str, tuple[int, ...]]]"
"""Stored name to (pattern of the fusion, shape)."""


class Skeleton:
    """A transformers model on the meta device, and what its loader and its saver do with names."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._state: dict[str, Any] = model.state_dict()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Skeleton | None:
        """Build from the content of config.json; None where transformers has no causal model for it.

        Raises:
            ModelError: transformers refuses a value.
        """
        import torch
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        model_type = config.get("model_type")
        if model_type not in CONFIG_MAPPING:
            return None
        try:
            # A copy to its depth: transformers adds to what is nested in it.
            parsed = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
            if type(parsed) not in AutoModelForCausalLM._model_mapping:
                return None
            with torch.device("meta"):
                return cls(AutoModelForCausalLM.from_config(parsed))
        # Its checks are of many kinds: whatever they raise, the config is not one.
        except Exception as error:
            found = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{CONFIG}: transformers cannot build a {model_type!r} of it "
                f"({type(error).__name__}: {found}): correct the value, or copy the original file again"
            ) from error

    @property
    def name(self) -> str:
        """Name of the class."""
        return type(self._model).__name__

    @property
    def memory(self) -> Shapes:
        """Name to shape of the parameters and buffers in memory; a tied head is left out."""
        tied = set(self._model.all_tied_weights_keys)
        return {name: tuple(t.shape) for name, t in self._state.items() if name not in tied}

    def file_names(self, name: str) -> list[str]:
        """Return the names under which ``save_pretrained`` writes a tensor: several where it is fused."""
        return list(self._saved({name: self._state[name]}))

    def file_shapes(self) -> Shapes:
        """Return name to shape of what ``save_pretrained`` writes; a tied head is left out."""
        tied = set(self._model.all_tied_weights_keys)
        kept = {name: tensor for name, tensor in self._state.items() if name not in tied}
        return {name: tuple(tensor.shape) for name, tensor in self._saved(kept).items()}

    def _saved(self, state: dict[str, Any]) -> dict[str, Any]:
        from transformers.core_model_loading import revert_weight_conversion

        saved: dict[str, Any] = revert_weight_conversion(self._model, state)
        return saved

    def loaded(self, stored: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """Return stored name to (memory name, pattern of the fusion that it takes part in, or None).

        As transformers' own loader sees it: old names, and those of a bare model saved without its prefix.
        """
        from transformers.core_model_loading import rename_source_key

        renamings, converters = self._steps()
        prefix = self._model.base_model_prefix
        found = {}
        for name in stored:
            new, pattern = rename_source_key(name, renamings, converters, prefix, self._state)
            if new not in self._state and name in self._state:
                new, pattern = name, None  # already as in memory
            found[name] = (new, pattern)
        return found

    def _steps(self) -> tuple[list[Any], list[Any]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        steps = get_model_conversion_mapping(self._model)
        return (
            [step for step in steps if isinstance(step, WeightRenaming)],
            [step for step in steps if isinstance(step, WeightConverter)],
        )

    def fused(self, target: str, parts: Parts) -> Shapes | None:
        """Return name to shape of what the loader makes of ``parts``, or None where it cannot.

        Args:
            target: The memory name that all parts lead to.
            parts: The parts that were found.
        """
        import torch

        _, converters = self._steps()
        patterns = {pattern for pattern, _ in parts.values()}
        step = next((step for step in converters if patterns <= set(step.source_patterns)), None)
        if step is None:
            return None
        step = copy.deepcopy(step)
        for name, (pattern, shape) in parts.items():
            step.add_tensor(target, name, pattern, torch.empty(shape, device="meta"))
        try:
            made = step.convert(target, model=self._model, config=self._model.config)
        # The conversions are transformers' own, of any kind: whatever they raise, the parts do not fit.
        except Exception:
            return None
        return {name: tuple((t[0] if isinstance(t, list) else t).shape) for name, t in made.items()}

    def kind(self, module: str) -> str:
        """Return the class name of the module at a path, such as ``Conv1D``; "" if there is none."""
        try:
            return type(self._model.get_submodule(module)).__name__
        except AttributeError:
            return ""

    def ends(self) -> tuple[str, str]:
        """Return the memory names of the embedding's and of the head's weight, "" where there is none."""
        places = {id(module): name for name, module in self._model.named_modules()}
        found = []
        for module in (self._model.get_input_embeddings(), self._model.get_output_embeddings()):
            name = places.get(id(module), "") if module is not None else ""
            found.append(f"{name}.weight" if name else "")
        return found[0], found[1]

    def ignores(self, name: str) -> bool:
        """Whether the class says of a stored tensor that it passes over it, such as layers for training."""
        patterns = self._model._keys_to_ignore_on_load_unexpected or ()
        return any(re.search(pattern, name) for pattern in patterns)

    def computes(self, name: str) -> bool:
        """Whether the class says of a parameter that it need not be stored."""
        patterns = self._model._keys_to_ignore_on_load_missing or ()
        return any(re.search(pattern, name) for pattern in patterns)


def unexplained(model: Model) -> list[str]:
    """Return what the architecture misses in ``model``, has no place for, or has in another shape.

    Reads no weights. Says nothing of an architecture that transformers does not know: there an engine's own
    check decides.
    """
    skeleton = Skeleton.of(model.config)
    if skeleton is None:
        return []
    if {name: spec.shape for name, spec in model.specs.items()} == skeleton.file_shapes():
        return []
    faults = _faults(skeleton, model.specs)
    found = []
    if faults.missing:
        found.append(f"the weights lack {some(faults.missing)}: copy or download the model again")
    if faults.extra:
        found.append(
            f"{skeleton.name} has no place for {some(faults.extra)}: delete them from the file, or use a "
            "model whose config.json fits its weights"
        )
    if faults.unlike:
        found.append(f"config.json and weights disagree: {some(faults.unlike)}: take both from one model")
    return found


@dataclass
class _Faults:
    """Names of tensors, those of ``unlike`` with their shapes."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)


def _faults(skeleton: Skeleton, specs: Mapping[str, TensorSpec]) -> _Faults:
    memory = skeleton.memory
    faults = _Faults()
    have: set[str] = set()
    groups: dict[str, Parts] = defaultdict(dict)
    for name, (place, pattern) in skeleton.loaded(specs).items():
        shape = specs[name].shape
        if pattern is not None:
            groups[place][name] = (pattern, shape)
        elif place in memory:
            have.add(place)
            _compare(faults, name, shape, memory[place])
        elif not skeleton.ignores(name):
            faults.extra.append(name)
    for place, parts in groups.items():
        made = skeleton.fused(place, parts) or {place: ()}
        if made.items() <= memory.items():
            have.update(made)
        elif place not in memory:
            faults.extra += parts
        else:
            have.update(made)
            _compare_parts(faults, skeleton, place, parts)
    for place in memory:
        if place not in have and not skeleton.computes(place):
            faults.missing += skeleton.file_names(place)
    return faults


def _compare(faults: _Faults, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        faults.unlike.append(f"{name} {list(shape)} instead of {list(wanted)}")


def _compare_parts(faults: _Faults, skeleton: Skeleton, place: str, parts: Parts) -> None:
    """Say which of the parts of a fused tensor keep it from being put together."""
    shapes = skeleton.file_shapes()
    wanted = {name: shapes[name] for name in skeleton.file_names(place)}
    before = len(faults.missing) + len(faults.extra) + len(faults.unlike)
    faults.missing += [name for name in wanted if name not in parts]
    faults.extra += [name for name in parts if name not in wanted]
    for name in wanted.keys() & parts.keys():
        _compare(faults, name, parts[name][1], wanted[name])
    if before == len(faults.missing) + len(faults.extra) + len(faults.unlike):
        faults.unlike.append(f"{some(sorted(parts))} do not make up {place}")
