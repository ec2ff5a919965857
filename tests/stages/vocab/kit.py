"""Tokenizers, texts and blocks for the tests of the vocabulary stage."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from evolve.stages.vocab.block import VocabBlock
from evolve.weights.tokenizer import Tokenizer, load_tokenizer
from tests.tokenizers import gpt2_style, llama_style

if TYPE_CHECKING:
    from pathlib import Path

MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "n"), ("a", "n"), ("o", "n")]
BYTES = [*MERGES, ("Ġ", "the"), ("Ġ", "t"), ("Ġ", "h")]
WORDS = [*MERGES, ("▁", "the"), ("▁", "t"), ("▁", "h")]
CONFIG: dict[str, Any] = {"model_type": "llama"}
STYLES = ("bytes", "words")


def tokenizer(folder: Path, style: str, **keys: Any) -> Tokenizer:
    """Write and load a tokenizer."""
    if style == "bytes":
        gpt2_style(folder, BYTES, **keys)
    else:
        llama_style(folder, WORDS, **keys)
    return load_tokenizer(folder, CONFIG)


def domain(seed: int = 0, documents: int = 80) -> list[str]:
    """Return documents of some words that the tokenizers cut into many tokens."""
    draw = random.Random(seed)
    words = ["theatre", "then", "henna", "thin", "tannin", "onion", "banana", "ninth", "naïve", "東京", "aaa"]
    return [" ".join(draw.choices(words, k=8)) + draw.choice([".", "!", "\n  on"]) for _ in range(documents)]


def save(path: Path, texts: list[str]) -> Path:
    """Write documents as JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def block(dataset: Path | None, count: Any = 16, **keys: Any) -> VocabBlock:
    """Return a block that extends the model ``base``."""
    data = {} if dataset is None else {"dataset": {"path": str(dataset)}}
    return VocabBlock.model_validate(
        {"model": "base", **data, "num_new_tokens": count, "pad_to_multiple_of": 16, **keys}
    )
