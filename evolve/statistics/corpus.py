"""A text that statistics are gathered on: so many tokens of it, drawn by seed."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import ModelError, UserError
from evolve.weights.content import file_content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

_LINES = frozenset({".jsonl", ".ndjson"})


@dataclass(frozen=True)
class Corpus:
    """A text file and how much of it is read.

    A ``.jsonl`` file has a document a line, an object with the key ``text``. In any other file a document is
    a paragraph, that is, empty lines stand between documents. Documents are read in an order that the seed
    decides, until there are tokens enough.

    Attributes:
        path: The file, UTF-8.
        content: ``sha256:...`` of the file.
        max_tokens: Most tokens that are read.
        sequence_length: Tokens of one sequence.
        seed: Decides the order of the documents.
    """

    path: str
    content: str
    max_tokens: int = 200_000
    sequence_length: int = 512
    seed: int = 0

    @property
    def key(self) -> dict[str, Any]:
        """What decides the sequences, as plain data: not where the file is."""
        return {
            "content": self.content,
            "max_tokens": self.max_tokens,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
        }


def problem(path: Path | str) -> str:
    """Return why a file is no corpus, judged by its beginning, or an empty text."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder: name the file in it" if file.is_dir() else "no such file"
        return f"{path}: {what}"
    try:
        for _ in documents_at(file, itertools.islice(places(file), 1)):
            return ""
    except (UserError, OSError) as error:
        return str(error)
    return f"{path} holds no text"


def texts(path: Path | str) -> Iterator[str]:
    """Yield every document of a file, in its order.

    Raises:
        UserError: A document is no text.
        OSError: The file cannot be read.
    """
    file = Path(path).expanduser()
    yield from documents_at(file, places(file))


def documents(corpus: Corpus) -> Iterator[str]:
    """Yield the documents in the order that the seed decides.

    Raises:
        UserError: The file is missing, is not what the corpus says, or a document is no text.
    """
    file = Path(corpus.path).expanduser()
    try:
        content = file_content(file)
        found = np.fromiter((place for pair in places(file) for place in pair), np.int64).reshape(-1, 2)
    except (ModelError, OSError) as error:
        raise UserError(f"the corpus {corpus.path} cannot be read: {error}") from error
    if content != corpus.content:
        raise UserError(
            f"the corpus {corpus.path} holds {content}, not {corpus.content}: it changed, or another file "
            "is there; bring back the one that was meant"
        )
    order = shuffled(len(found), corpus.seed)
    yield from documents_at(file, ((int(begin), int(end)) for begin, end in found[order]))


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """Return the numbers below ``count`` in an order that the seed decides, with any version of numpy."""
    # Sorted by a counter-based generator: its raw numbers are fixed, what is made of them is not.
    draws = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(draws, kind="stable")


def sequences(corpus: Corpus, encode: Callable[[str], list[int]]) -> Iterator[Tensor]:
    """Yield token ids, one-dimensional int64: documents one after the other, cut into sequences.

    All have the corpus' length but the last, which has at least two tokens.

    Args:
        corpus: The text.
        encode: The tokens of a document, with those that mark its beginning and end.
    """
    import torch

    left = corpus.max_tokens
    waiting: list[int] = []
    for text in documents(corpus):
        if left < 2:
            return
        waiting += encode(text)
        while len(waiting) >= (size := min(corpus.sequence_length, left)) and size > 1:
            yield torch.tensor(waiting[:size], dtype=torch.int64)
            del waiting[:size]
            left -= size
    if len(waiting) > 1 and left > 1:
        yield torch.tensor(waiting[: min(left, corpus.sequence_length)], dtype=torch.int64)


def places(file: Path) -> Iterator[tuple[int, int]]:
    """Yield where each document of a file begins and ends, in bytes."""
    lines = file.suffix.lower() in _LINES
    begin, position = -1, 0
    with file.open("rb") as stream:
        for line in stream:
            if begin >= 0 and (lines or not line.strip()):
                yield begin, position
                begin = -1
            if begin < 0 and line.strip():
                begin = position
            position += len(line)
    if begin >= 0:
        yield begin, position


def documents_at(
    file: Path, where: Iterable[tuple[int, int]], read: Callable[[Any], str] | None = None
) -> Iterator[str]:
    """Yield the documents at some places of a file.

    Args:
        file: The file.
        where: As :func:`places` gives them, in any order.
        read: Makes a text of a line's JSON value, or raises ValueError; absent: its ``text``.

    Raises:
        UserError: A document is no text.
    """
    read = read or text_of
    lines = file.suffix.lower() in _LINES
    with file.open("rb") as stream:
        for begin, end in where:
            stream.seek(begin)
            raw = stream.read(end - begin)
            try:
                text = raw.decode("utf-8-sig")
                yield read(json.loads(text)) if lines else text.strip()
            except (ValueError, RecursionError) as error:
                number = _line(file, begin)
                wanted = 'a JSON object with a "text"' if lines else "UTF-8 text"
                raise UserError(f"{file}:{number}: expected {wanted}: {error}") from error


def text_of(entry: Any) -> str:
    """Return the ``text`` of a line's JSON value.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError("the line has no text")
    text: str = entry["text"]
    return text


def _line(file: Path, place: int) -> int:
    with file.open("rb") as stream:
        return 1 + stream.read(place).count(b"\n")
