"""Small real tokenizers: byte-level ones as GPT-2 has, and ones with ▁ and byte fallback as Llama has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SPECIAL = ("<unk>", "<s>", "</s>")
TEXTS = (
    "the hen in the tin",
    " then he ran on and on\n\n  again",
    "One or two red ants, and 12345 others!",
    "naïve café — 東京 🙂",
    "theatre<|im_end|>the end",
    "",
)


def bytes_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level tokenizers."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def gpt2_style(
    folder: Path,
    merges: Sequence[tuple[str, str]] = (),
    *,
    added: Sequence[str | Mapping[str, Any]] = (),
    shuffle: int = 0,
    gaps: Mapping[str, int] | None = None,
    tokenizer_class: str = "GPT2Tokenizer",
    **config: Any,
) -> Path:
    """Write a byte-level BPE tokenizer.

    Args:
        folder: Where; may exist.
        merges: In their order.
        added: Added tokens; a text is a special one.
        shuffle: Seed of an order of the ids, or 0 for the usual one.
        gaps: Ids of some tokens of the vocabulary, to make holes.
        tokenizer_class: As in tokenizer_config.json.
        config: Further keys of it.
    """
    import random

    tokens = [*SPECIAL, *bytes_alphabet()]
    tokens += [token for token in dict.fromkeys("".join(pair) for pair in merges) if token not in tokens]
    if shuffle:
        random.Random(shuffle).shuffle(tokens)
    vocab = {token: number for number, token in enumerate(tokens)} | dict(gaps or {})
    return byte_level(folder, vocab, merges, added=added, tokenizer_class=tokenizer_class, **config)


def byte_level(
    folder: Path,
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]] = (),
    *,
    added: Sequence[str | Mapping[str, Any]] = (),
    **config: Any,
) -> Path:
    """Write a byte-level BPE tokenizer with just this vocabulary."""
    return _write(
        folder,
        {"type": "BPE", "vocab": dict(vocab), "merges": [list(pair) for pair in merges]},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
        },
        added,
        config,
    )


def llama_style(
    folder: Path,
    merges: Sequence[tuple[str, str]] = (),
    *,
    added: Sequence[str | Mapping[str, Any]] = (),
    letters: str = "abcdefghijklmnopqrstuvwxyz.,!",
    **config: Any,
) -> Path:
    """Write a BPE tokenizer with ▁ for spaces and bytes for unknown characters."""
    tokens = [*SPECIAL, *(f"<0x{number:02X}>" for number in range(256)), "▁", *letters]
    tokens += [token for token in dict.fromkeys("".join(pair) for pair in merges) if token not in tokens]
    model = {
        "type": "BPE",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [list(pair) for pair in merges],
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    around = {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }
    return _write(
        folder, model, around, added, {"tokenizer_class": "LlamaTokenizer", "legacy": False, **config}
    )


def _write(
    folder: Path,
    model: dict[str, Any],
    around: dict[str, Any],
    added: Sequence[str | Mapping[str, Any]],
    config: dict[str, Any],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab = model["vocab"]
    fresh = 1 + max(vocab.values())
    entries = []
    for entry in (*SPECIAL, *added):
        whole = {**flags, **({"content": entry} if isinstance(entry, str) else entry)}
        number = vocab.get(whole["content"])
        if number is None:
            number, fresh = fresh, fresh + 1
        entries.append({"id": number, **whole})
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
    }
    data |= {"post_processor": None, **around, "model": {"dropout": None, **model}}
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    names |= {"clean_up_tokenization_spaces": False, "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **config}))
    return folder
