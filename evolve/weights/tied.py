"""Is the output head the input embedding? Decided once, when a model is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from evolve.weights.model import TensorSpec

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)


def decide(
    config: Mapping[str, Any], specs: Mapping[str, TensorSpec], folder: Path
) -> tuple[bool, str | None, str]:
    """Return whether the model is tied, and the names of its stored head (or None) and embedding (or "").

    The config decides; where it says nothing, the default of its class in transformers; where transformers
    does not know the class, whether a head is stored.

    Raises:
        ModelError: The answer contradicts the stored tensors.
    """
    head = next((name for name in HEADS if name in specs), None)
    embedding = next((name for name in specs if _is_embedding(name)), "")
    stated = config.get("tie_word_embeddings")
    tied = stated if isinstance(stated, bool) else _class_default(config)
    if tied is None:
        tied = head is None
    if not tied and embedding and not _has_head(specs, embedding):
        raise ModelError(
            f"{folder} stores no output head, and its config.json does not tie the head to the embedding. "
            'Add "tie_word_embeddings": true to config.json if the head is the embedding, else use a causal '
            "language model with a head"
        )
    if tied and head is not None and not embedding:
        raise ModelError(
            f"{folder} is tied but stores {head} instead of the embedding: load it in transformers and save "
            "it with save_pretrained"
        )
    if tied and head is not None and specs[head] != specs[embedding]:
        raise ModelError(differ(folder, head, embedding))
    return tied, head, embedding


def differ(folder: Path, head: str, embedding: str) -> str:
    """Return the message for a head that is stored, differs, and should be tied."""
    return (
        f"{folder}: config.json says that the head is tied, but the stored {head} differs from {embedding}. "
        'Set "tie_word_embeddings": false in config.json if the head was trained on its own, else delete '
        f"{head} from the file"
    )


def _is_embedding(name: str) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in EMBEDDINGS)


def _has_head(specs: Mapping[str, TensorSpec], embedding: str) -> bool:
    """Whether a tensor outside the layers has the shape of the embedding: a head, whatever its name."""
    shape = specs[embedding].shape
    return any(
        spec.shape == shape and name != embedding and not any(part.isdigit() for part in name.split("."))
        for name, spec in specs.items()
    )


def _class_default(config: Mapping[str, Any]) -> bool | None:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return None
    default = getattr(CONFIG_MAPPING[model_type](), "tie_word_embeddings", None)
    return default if isinstance(default, bool) else None
