"""The vocabulary of a model, read from its tokenizer files without building a tokenizer."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights.files import contents, parse_json, read_content

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.files import Files

_OPAQUE = ("*.model", "*.tiktoken", "tekken.json")


def vocabulary(files: Files) -> dict[str, int] | str | None:
    """Return token to id; or a hash where only a sentencepiece file tells; or None without a tokenizer.

    Raises:
        ModelError: A tokenizer file is damaged.
    """
    found = contents(files)
    if "tokenizer.json" in found:
        return _fast(found["tokenizer.json"])
    if "vocab.json" in found:
        tokens = _ids(found["vocab.json"])
        if "added_tokens.json" in found:
            tokens.update(_ids(found["added_tokens.json"]))
        return tokens
    if "vocab.txt" in found:
        lines = read_content(found["vocab.txt"]).decode("utf-8").splitlines()
        return {token: number for number, token in enumerate(lines)}
    for name, content in found.items():
        if any(fnmatchcase(name, pattern) for pattern in _OPAQUE):
            return hashlib.sha256(read_content(content)).hexdigest()
    return None


def _fast(content: Path | bytes) -> dict[str, int]:
    where = _name(content, "tokenizer.json")
    data = parse_json(read_content(content), where)
    try:
        entries: Any = data["model"]["vocab"]
        if isinstance(entries, list):  # Unigram: [token, log-probability] in the order of ids.
            tokens = {token: number for number, (token, _) in enumerate(entries)}
        else:
            tokens = _checked(entries, where)
        added = data.get("added_tokens") or []
        tokens.update({entry["content"]: entry["id"] for entry in added})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where} is not what tokenizers writes ({error!r}). Download it again") from error
    return tokens


def _ids(content: Path | bytes) -> dict[str, int]:
    where = _name(content, "a tokenizer file")
    return _checked(parse_json(read_content(content), where), where)


def _checked(entries: Any, where: Path | str) -> dict[str, int]:
    if not isinstance(entries, dict) or not all(isinstance(number, int) for number in entries.values()):
        raise ModelError(f"{where} does not map tokens to ids. Copy or download it again")
    return dict(entries)


def _name(content: Path | bytes, name: str) -> Path | str:
    """Return what a message calls the file."""
    return name if isinstance(content, bytes) else content
