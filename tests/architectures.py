"""Tiny random models of every architecture that merging is held against, one function each.

    from tests.architectures import ARCHITECTURES, make
    folder = make(tmp_path / "a", "gemma2", seed=1)

Two layers, width 32, a vocabulary of 128; every size that can differ from another does, so that a transposed
or swapped tensor shows. Made in code: no downloads.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tiny import make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB = 128
LAYERS = 2
_TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_SHAPE: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def llama() -> Any:
    """Llama with a head of its own."""
    from transformers import LlamaConfig

    return LlamaConfig(**_SHAPE, tie_word_embeddings=False)


def llama_tied() -> Any:
    """Llama whose head is its embedding."""
    from transformers import LlamaConfig

    return LlamaConfig(**_SHAPE, tie_word_embeddings=True)


def qwen2() -> Any:
    """Qwen2: biases on queries, keys and values; tied, as the small ones are."""
    from transformers import Qwen2Config

    return Qwen2Config(**_SHAPE, tie_word_embeddings=True)


def qwen3() -> Any:
    """Qwen3: norms on queries and keys, heads wider than width / heads."""
    from transformers import Qwen3Config

    return Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True)


def mistral() -> Any:
    """Mistral with a sliding window."""
    from transformers import MistralConfig

    return MistralConfig(**_SHAPE, sliding_window=16, tie_word_embeddings=False)


def gemma2() -> Any:
    """Gemma 2: four norms a layer, soft caps, tied."""
    from transformers import Gemma2Config

    return Gemma2Config(**_SHAPE, head_dim=16, query_pre_attn_scalar=16, sliding_window=16)


def gemma3_text() -> Any:
    """Gemma 3, text only: query and key norms, local and global layers, tied."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        **_SHAPE,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )


def phi3() -> Any:
    """Phi-3: queries, keys and values in one tensor, gate and up in one."""
    from transformers import Phi3Config

    return Phi3Config(**_SHAPE, tie_word_embeddings=False)


def olmo2() -> Any:
    """OLMo 2: norms behind the blocks and over whole queries and keys."""
    from transformers import Olmo2Config

    return Olmo2Config(**_SHAPE, tie_word_embeddings=False)


def gpt_neox() -> Any:
    """GPT-NeoX (Pythia): parallel residual, fused queries, keys and values, biases, ``embed_out``."""
    from transformers import GPTNeoXConfig

    shape = {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}
    return GPTNeoXConfig(**shape, tie_word_embeddings=False)


def gpt2() -> Any:
    """GPT-2: Conv1D (weights stored as inputs by outputs), learned positions, tied."""
    from transformers import GPT2Config

    return GPT2Config(**_TOKENS, n_embd=32, n_inner=48, n_layer=LAYERS, n_head=4, n_positions=128)


def stablelm() -> Any:
    """StableLM: layer norms with biases, partial rotary."""
    from transformers import StableLmConfig

    return StableLmConfig(**_SHAPE, use_qkv_bias=True, tie_word_embeddings=False)


def mixtral() -> Any:
    """Mixtral: four experts, fused in memory and single in the file."""
    from transformers import MixtralConfig

    return MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)


def qwen3_moe() -> Any:
    """Qwen3 MoE: one dense layer, then one with experts."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **_SHAPE,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
        tie_word_embeddings=False,
    )


def mamba() -> Any:
    """Mamba: no attention; convolutions, state matrices, tied."""
    from transformers import MambaConfig

    return MambaConfig(**_TOKENS, hidden_size=32, state_size=8, num_hidden_layers=LAYERS, time_step_rank=4)


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    make_config.__name__: make_config
    for make_config in (
        llama,
        llama_tied,
        qwen2,
        qwen3,
        mistral,
        gemma2,
        gemma3_text,
        phi3,
        olmo2,
        gpt_neox,
        gpt2,
        stablelm,
        mixtral,
        qwen3_moe,
        mamba,
    )
}
"""Name to the function that gives the transformers config."""


def make(
    path: Path | str, name: str, *, seed: int = 0, dtype: str = "float32", tokenizer: bool = True
) -> Path:
    """Write a random model of architecture ``name`` into the folder ``path``, and return the folder.

    Every parameter is random, norms and biases too, so that a forgotten one shows. The values depend on
    ``seed`` and the parameter's name alone.

    Args:
        path: Gets config.json, model.safetensors and the tokenizer.
        name: A key of ``ARCHITECTURES``.
        seed: Other seeds, other values.
        dtype: Type of the weights.
        tokenizer: Whether to write the tokenizer too.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{parameter_name}".encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.1 * noise)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    if tokenizer:
        make_tokenizer(path, VOCAB)
    return path


def logits(path: Path | str, *, dtype: str = "float32") -> Any:
    """Return what transformers computes on sixteen tokens with the model in ``path``; loads on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), output_loading_info=True
    )
    # A tensor that is missing is filled at random with no more than a warning.
    faults = {key: found for key, found in info.items() if found}
    if faults:
        raise AssertionError(f"{path}: {faults}")
    with torch.no_grad():
        return model.eval()(torch.arange(16)[None] * 7 % VOCAB).logits
