"""Documents, rows and teachers of tiny models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evolve.stages.distill.teachers.base import Opening
from evolve.training.rows import IGNORED, Row
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 128


def documents(count: int, *, seed: int = 0, longest: int = 20, vocabulary: int = VOCABULARY) -> list[Any]:
    """Documents of 1 to ``longest`` tokens."""
    draw = np.random.default_rng(seed)
    return [
        draw.integers(3, vocabulary, int(draw.integers(1, longest + 1))).astype(np.int32)
        for _ in range(count)
    ]


def packed(found: list[Any]) -> Row:
    """All documents in one row, the first token of each ignored."""
    labels = [np.concatenate([[IGNORED], one[1:]]) for one in found]
    return Row(
        np.concatenate(found), np.concatenate(labels).astype(np.int32), tuple(len(one) for one in found)
    )


def opening(folder: Path, **more: Any) -> Opening:
    model = open_model(folder)
    return Opening(model, load_tokenizer(model.files, model.config), **more)


def reference(folder: Path, dtype: Any = torch.float64) -> Any:
    """The network as transformers loads it from the folder, a way of its own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def alone(network: Any, tokens: Any, **more: Any) -> Any:
    """One document by itself, without padding or mask."""
    with torch.no_grad():
        return network(torch.from_numpy(tokens.astype("int64"))[None], use_cache=False, **more)
