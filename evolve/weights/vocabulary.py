"""The vocabulary of a model's folder, read from its tokenizer files without building a tokenizer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights.files import read_json

if TYPE_CHECKING:
    from pathlib import Path


def vocabulary(folder: Path) -> dict[str, int] | str | None:
    """Return token to id; or a hash where only a sentencepiece file tells; or None without a tokenizer.

    Raises:
        ModelError: A tokenizer file is damaged.
    """
    if (path := folder / "tokenizer.json").is_file():
        return _fast(path)
    if (path := folder / "vocab.json").is_file():
        tokens = _ids(path, read_json(path))
        if (added := folder / "added_tokens.json").is_file():
            tokens.update(_ids(added, read_json(added)))
        return tokens
    if (path := folder / "vocab.txt").is_file():
        return {token: number for number, token in enumerate(path.read_text("utf-8").splitlines())}
    for path in sorted([*folder.glob("*.model"), *folder.glob("*.tiktoken"), *folder.glob("tekken.json")]):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def _fast(path: Path) -> dict[str, int]:
    data = read_json(path)
    try:
        entries: Any = data["model"]["vocab"]
        if isinstance(entries, list):  # Unigram: [token, log-probability] in the order of ids.
            tokens = {token: number for number, (token, _) in enumerate(entries)}
        else:
            tokens = _ids(path, entries)
        added = data.get("added_tokens") or []
        tokens.update({entry["content"]: entry["id"] for entry in added})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is not what tokenizers writes ({error!r}). Download it again") from error
    return tokens


def _ids(path: Path, entries: Any) -> dict[str, int]:
    if not isinstance(entries, dict) or not all(isinstance(number, int) for number in entries.values()):
        raise ModelError(f"{path} does not map tokens to ids. Copy or download it again")
    return dict(entries)
