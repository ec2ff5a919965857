"""Which layer a tensor belongs to, how many layers there are, and what stands before and after them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from evolve.tensors.gradient import depth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from evolve.weights.model import Model

# model.layers.3. (llama), h.3. and transformer.h.3. (gpt2), gpt_neox.layers.3., transformer.blocks.3. (mpt)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Keys of a config that hold the number of layers."""
# embed_tokens, embeddings, wte, wpe, word_embeddings_layernorm ...; not gpt_neox's head, and not lfm2's last
# norm, which is called embedding_norm.
_BEFORE = re.compile(r"(?:^|[._])(?:emb(?!edding_norm|ed_out)|wte\b|wpe\b|project_in\b|rotary|relative_pe)")


class LayerTensor(NamedTuple):
    """The name of a tensor in a layer, taken apart.

    Attributes:
        stack: What stands before the number, such as ``model.layers``.
        layer: The number.
        rest: What stands behind it, such as ``self_attn.q_proj.weight``.
    """

    stack: str
    layer: int
    rest: str

    @property
    def name(self) -> str:
        """The whole name."""
        return f"{self.stack}.{self.layer}.{self.rest}"


def split_name(tensor: str) -> LayerTensor | None:
    """Take the name of a tensor in a layer apart; None for embeddings, last norm and head."""
    found = _LAYER.search(tensor)
    if found is None:
        return None
    return LayerTensor(tensor[: found.start(1) - 1], int(found.group(1)), tensor[found.end() :])


def layer_of(tensor: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, or None for embeddings, last norm and head."""
    found = _LAYER.search(tensor)
    return int(found.group(1)) if found else None


def before_layers(tensor: str) -> bool:
    """Whether a tensor outside of the layers is used before them (embeddings), not after (norm, head)."""
    return bool(_BEFORE.search(tensor))


def stacks(model: Model) -> dict[str, int]:
    """Return the stacks of layers that a model has, such as ``model.layers``, each with its length."""
    found: dict[str, int] = {}
    for name in model.specs:
        if (tensor := split_name(name)) is not None:
            found[tensor.stack] = max(found.get(tensor.stack, 0), tensor.layer + 1)
    return found


def stated_layers(config: Mapping[str, Any]) -> int | None:
    """Return the number of layers that a config states."""
    counts = (config.get(key) for key in COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def layer_count(model: Model) -> int:
    """Return the number of layers that the config states, else the one that the tensors' names show."""
    stated = stated_layers(model.config)
    if stated is not None:
        return stated
    return 1 + max((layer_of(name) or 0 for name in model.specs), default=0)


def depths(model: Model) -> Callable[[str], float]:
    """Return the function from a tensor's name to its depth t, at which gradients are read.

    Of several stacks (a vision tower beside the language model) each has depths of its own.
    """
    counts = stacks(model)
    whole = layer_count(model)

    def at(tensor: str) -> float:
        found = split_name(tensor)
        if found is None:
            return 0.0
        return depth(found.layer, whole if len(counts) == 1 else counts[found.stack])

    return at


def component_names(tensors: Iterable[str]) -> set[str]:
    """Return the parts of tensors' names that a filter may mean, such as ``self_attn`` and ``mlp``."""
    return {part for tensor in tensors for part in tensor.split(".") if not part.isdigit()}
