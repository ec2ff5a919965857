"""Which layer a tensor belongs to, and how many layers there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from evolve.tensors.gradient import depth

if TYPE_CHECKING:
    from collections.abc import Callable

    from evolve.weights.model import Model

# model.layers.3. (llama), h.3. and transformer.h.3. (gpt2), gpt_neox.layers.3., transformer.blocks.3. (mpt)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def layer_of(tensor: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, or None for embeddings, last norm and head."""
    found = _LAYER.search(tensor)
    return int(found.group(1)) if found else None


def layer_count(model: Model) -> int:
    """Return the number of layers that the config states, else the one that the tensors' names show."""
    for key in _COUNTS:
        count = model.config.get(key)
        if isinstance(count, int) and count > 0:
            return count
    return 1 + max((layer_of(name) or 0 for name in model.specs), default=0)


def depths(model: Model) -> Callable[[str], float]:
    """Return the function from a tensor's name to its depth t, at which gradients are read."""
    layers = layer_count(model)
    return lambda tensor: depth(layer_of(tensor), layers)


def component_names(model: Model) -> set[str]:
    """Return the parts of the tensors' names that a filter may mean, such as ``self_attn`` and ``mlp``."""
    return {part for tensor in model.specs for part in tensor.split(".") if not part.isdigit()}
