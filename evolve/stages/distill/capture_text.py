"""The documents of a text file as token ids, as a capture reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.statistics.corpus import texts
from evolve.weights.files import contents, parse_json, read_content

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer

_TOGETHER = 256


def text_documents(
    path: Path | str, tokenizer: Tokenizer, end: int | None, max_length: int, max_tokens: int | None = None
) -> Iterator[NDArray[np.int32]]:
    """Yield the token ids of a file's documents in its order, long ones in parts of ``max_length``.

    Args:
        path: Of a text or ``.jsonl`` file, see :mod:`evolve.statistics.corpus`.
        tokenizer: Makes the ids; what it puts in front of a text stands in front of a document.
        end: Stands behind each document; None: nothing does.
        max_length: Most tokens of a part.
        max_tokens: Where to stop, the last part cut; None: at the end of the file.

    Raises:
        UserError: A document is no text.
    """
    left = max_tokens
    waiting: list[str] = []

    def parts(some: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        front = tokenizer.front
        for ids in tokenizer.encode(some):
            whole = np.array([*front, *ids, *([] if end is None else [end])], np.int32)
            yield from (whole[start : start + max_length] for start in range(0, len(whole), max_length))

    def found() -> Iterator[NDArray[np.int32]]:
        for text in texts(path):
            waiting.append(text)
            if len(waiting) == _TOGETHER:
                yield from parts(waiting)
                waiting.clear()
        yield from parts(waiting)

    for part in found():
        if left is not None:
            if left <= 0:
                return
            part, left = part[:left], left - len(part)
        yield part


def end_token(model: Model, tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that ends a document, as the tokenizer's files or config.json name it."""
    content = contents(model.files).get("tokenizer_config.json")
    named: Any = None
    if content is not None:
        named = parse_json(read_content(content), "tokenizer_config.json").get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if isinstance(named, str) and named in tokenizer.ids:
        return tokenizer.ids[named]
    ids = model.config.get("eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    return first if isinstance(first, int) else None
