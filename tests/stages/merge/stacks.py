"""Tiny models of many architectures, and their layers put into another order by hand in torch."""

from __future__ import annotations

import copy
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKENS = torch.tensor([[5, 17, 40, 3, 99, 21, 8, 64, 2, 30, 71, 11]])

_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 4},
    "gemma3_text": {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 4},
    "phi3": {},
    "phi": {"partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {"residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "stablelm": {"use_qkv_bias": True},
    "cohere": {"tie_word_embeddings": True},
    "olmo": {},
    "olmoe": {**_EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_EXPERTS, "head_dim": 16},
    "starcoder2": {"sliding_window": None},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_positions": 64, "tie_word_embeddings": True},
    "gpt_neox": {},
    "mamba": {"state_size": 8, "tie_word_embeddings": True},
}
"""``model_type`` to what its config says beside the common shape."""
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


class Pick(NamedTuple):
    """A slice: layers ``first`` to ``end - 1`` of a model, the hidden state times ``scale`` before them."""

    model: str
    first: int
    end: int
    scale: float = 1.0


def make_parent(path: Path, kind: str, *, seed: int, layers: int, eps: float | None = None) -> Path:
    """Write a random model of a ``model_type``, norms and biases random too; ``eps`` is that of its norms."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[kind](**{**_SHAPE, **KINDS[kind], "num_hidden_layers": layers})
    if eps is not None:
        names = [name for name in _EPSILONS if hasattr(config, name)]
        for name in names:
            setattr(config, name, eps)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.1 if parameter.ndim == 1 else 0.3
            centre = 1.0 if parameter.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + scale * noise)
    model.save_pretrained(path)
    return path


def network(path: Path) -> Any:
    """Load a folder in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model: Any) -> torch.Tensor:
    """Return the logits of a fixed text."""
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def _stack(model: Any) -> tuple[Any, str]:
    """Return the module that holds the list of layers, and the list's name in it."""
    base = model.base_model
    lists = [name for name, module in base.named_children() if isinstance(module, torch.nn.ModuleList)]
    (name,) = lists
    return base, name


def by_hand(parents: dict[str, Any], picks: Sequence[Pick], *, exact: bool = True) -> torch.Tensor:
    """Return the logits of the layers of some parents, run one after the other.

    The hidden state is multiplied by the scale of a pick before its first layer.

    Args:
        parents: Name to transformers model.
        picks: What is run. Embeddings are those of the first pick's model, last norm and head of the last's.
        exact: Whether the norms that read the hidden state have their epsilon multiplied too, by the square
            of the scales so far. Then they see no difference at all: norm(s x, s^2 eps) = norm(x, eps).
    """
    model = copy.deepcopy(parents[picks[0].model])
    last = copy.deepcopy(parents[picks[-1].model])
    base, name = _stack(model)
    layers, total = [], 1.0
    for pick in picks:
        total *= pick.scale
        source, own = _stack(parents[pick.model])
        for number in range(pick.first, pick.end):
            layer = copy.deepcopy(getattr(source, own)[number])
            if number == pick.first:
                layer.register_forward_pre_hook(_times(pick.scale), with_kwargs=True)
            if exact:
                for norm in _reading_norms(layer, model.config.model_type):
                    _scale_epsilon(norm, total**2)
            layers.append(layer)
    _set_kinds(model.config, parents, picks)
    model.config.num_hidden_layers = len(layers)
    setattr(base, name, torch.nn.ModuleList(layers))
    for child, module in list(last.base_model.named_children()):
        if "norm" in child or child == "ln_f":
            setattr(base, child, module)
            if exact:
                _scale_epsilon(module, total**2)
    if not model.config.tie_word_embeddings:
        model.set_output_embeddings(last.get_output_embeddings())
    return logits(model)


def _set_kinds(config: Any, parents: dict[str, Any], picks: Sequence[Pick]) -> None:
    sources = [(pick.model, number) for pick in picks for number in range(pick.first, pick.end)]
    for key in ("layer_types", "no_rope_layers"):
        if key in config.to_dict() and getattr(config, key) is not None:
            setattr(config, key, [getattr(parents[one].config, key)[number] for one, number in sources])


def _reading_norms(layer: torch.nn.Module, kind: str) -> list[torch.nn.Module]:
    """Return the norms of a layer that read the hidden state, and not what the layer computes of it."""
    names = {"input_layernorm", "pre_feedforward_layernorm", "ln_1", "ln_2", "norm"}
    if not kind.startswith("gemma") or kind == "gemma":
        names.add("post_attention_layernorm")
    return [module for name, module in layer.named_children() if name in names]


def _scale_epsilon(norm: Any, factor: float) -> None:
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            setattr(norm, name, getattr(norm, name) * factor)
            return
    raise AssertionError(f"{type(norm).__name__} has no epsilon that can be set")


def _times(scale: float) -> Any:
    def hook(_module: Any, positional: tuple[Any, ...], keys: dict[str, Any]) -> Any:
        if positional:
            return (positional[0] * scale, *positional[1:]), keys
        return positional, {**keys, "hidden_states": keys["hidden_states"] * scale}

    return hook
