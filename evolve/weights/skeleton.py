"""Are these the tensors that the architecture has? Asked of transformers, on a model without storage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evolve.weights.model import Model

_SHOWN = 3


def unexplained(model: Model) -> list[str]:
    """Return what the architecture misses in ``model``, has no place for, or has in another shape.

    Reads no weights. Says nothing of an architecture that transformers does not know, or whose stored
    tensors it converts while loading (fused experts, for one): there an engine's own check decides.
    """
    skeleton = _skeleton(model)
    if skeleton is None:
        return []
    tied = set(skeleton.all_tied_weights_keys)
    expected = {name: tuple(t.shape) for name, t in skeleton.state_dict().items() if name not in tied}
    plain, converts = renamings(skeleton)
    stored = {rename(name, plain): (name, spec.shape) for name, spec in model.specs.items()}
    prefix = f"{skeleton.base_model_prefix}."
    if not any(name.startswith(prefix) for name in stored):
        # Saved from the bare model, as the first GPT-2 was.
        stored = {name if name in expected else prefix + name: entry for name, entry in stored.items()}
    missing = [name for name in expected if name not in stored]
    extra = [original for name, (original, _) in stored.items() if name not in expected]
    unlike = [
        f"{original} {list(shape)} instead of {list(expected[name])}"
        for name, (original, shape) in stored.items()
        if name in expected and expected[name] != shape
    ]
    if converts and (missing or extra or unlike):
        return []
    found = []
    if missing:
        found.append(f"the weights lack {_some(missing)}: copy or download the model again")
    if extra:
        found.append(
            f"{type(skeleton).__name__} has no place for {_some(extra)}: delete them from the file, or use a "
            "model whose config.json fits its weights"
        )
    if unlike:
        found.append(f"config.json and weights disagree: {_some(unlike)}: take both from one model")
    return found


def _skeleton(model: Model) -> Any:
    """Return the model without storage, or None where transformers cannot build it from its config."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model_type = model.config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return None
    config = CONFIG_MAPPING[model_type].from_dict(dict(model.config))
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def renamings(skeleton: Any) -> tuple[list[tuple[str, str]], bool]:
    """Return the plain renamings of tensors while loading, and whether anything else happens to them too."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    steps = get_model_conversion_mapping(skeleton)
    plain = [
        (step.source_patterns[0], step.target_patterns[0])
        for step in steps
        if isinstance(step, WeightRenaming) and len(step.source_patterns) == len(step.target_patterns) == 1
    ]
    return plain, len(plain) < len(steps)


def rename(name: str, plain: Iterable[tuple[str, str]]) -> str:
    """Return the name that a stored tensor has after loading."""
    for source, target in plain:
        name = re.sub(source, target.replace("\\", r"\\"), name)
    return name


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
