"""Tiny random models in Hugging Face format, with a real tokenizer, made in code: no downloads."""

from __future__ import annotations

import string
import zlib
from pathlib import Path
from typing import Any

WIDTH = 64
HEADS = 2
"""WIDTH / HEADS is 32: vLLM's CPU attention fails with smaller heads."""

_SPECIAL = ("<unk>", "<s>", "</s>")
_PAIRS = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of", "ed")


def make_tokenizer(path: Path, vocab: int = 128) -> None:
    """Write a BPE tokenizer over ASCII into ``path``: 99 tokens, then merges up to ``vocab``."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    # The byte-level alphabet writes a space as Ġ and a newline as Ċ.
    characters = [*sorted(string.ascii_letters + string.digits + string.punctuation), "Ġ", "Ċ"]
    pairs = [*((pair[0], pair[1]) for pair in _PAIRS), *(("Ġ", letter) for letter in string.ascii_lowercase)]
    tokens = [*_SPECIAL, *characters][:vocab]
    merges = pairs[: vocab - len(tokens)]
    tokens += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    ).save_pretrained(path)


def make_config(arch: str = "llama", *, tied: bool = True, layers: int = 2, vocab: int = 128) -> Any:
    """Return the transformers config of a tiny model."""
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 256,
    }
    if arch == "llama":
        return t.LlamaConfig(**common, **shape, num_key_value_heads=1)
    if arch == "qwen2":
        return t.Qwen2Config(**common, **shape, num_key_value_heads=1)
    if arch == "mistral":
        return t.MistralConfig(**common, **shape, num_key_value_heads=1, sliding_window=None)
    if arch == "gpt_neox":
        return t.GPTNeoXConfig(**common, **shape)
    if arch == "gpt2":
        return t.GPT2Config(**common, n_embd=WIDTH, n_layer=layers, n_head=HEADS, n_positions=256)
    raise ValueError(f"unknown arch {arch!r}")


def make_model(
    path: Path | str,
    arch: str = "llama",
    *,
    tied: bool = True,
    seed: int = 0,
    layers: int = 2,
    vocab: int = 128,
    dtype: str = "float32",
) -> Path:
    """Write a random model and its tokenizer into the folder ``path``, and return the folder.

    Every parameter is random, norms and biases too, so that a forgotten one shows. The values depend on
    ``seed`` and the parameter's name alone. ``arch``: llama, qwen2, mistral, gpt2 or gpt_neox.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_config(make_config(arch, tied=tied, layers=layers, vocab=vocab))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.1 * noise)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    make_tokenizer(path, vocab)
    return path
