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
        for _ in _documents(file, itertools.islice(_places(file), 1)):
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
    yield from _documents(file, _places(file))


def documents(corpus: Corpus) -> Iterator[str]:
    """Yield the documents in the order that the seed decides.

    Raises:
        UserError: The file is missing, is not what the corpus says, or a document is no text.
    """
    file = Path(corpus.path).expanduser()
    try:
        content = file_content(file)
        places = np.fromiter((place for pair in _places(file) for place in pair), np.int64).reshape(-1, 2)
    except (ModelError, OSError) as error:
        raise UserError(f"the corpus {corpus.path} cannot be read: {error}") from error
    if content != corpus.content:
        raise UserError(
            f"the corpus {corpus.path} holds {content}, not {corpus.content}: it changed, or another file "
            "is there; bring back the one that was meant"
        )
    # Sorted by a counter-based generator: the same order with any version of numpy.
    draws = np.random.Philox(key=corpus.seed).random_raw(len(places))
    order = np.argsort(draws, kind="stable")
    yield from _documents(file, ((int(begin), int(end)) for begin, end in places[order]))


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


def _places(file: Path) -> Iterator[tuple[int, int]]:
    """Yield where each document begins and ends, in bytes."""
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


def _documents(file: Path, places: Iterable[tuple[int, int]]) -> Iterator[str]:
    lines = file.suffix.lower() in _LINES
    with file.open("rb") as stream:
        for begin, end in places:
            stream.seek(begin)
            raw = stream.read(end - begin)
            try:
                text = raw.decode("utf-8-sig")
                yield _text_of(json.loads(text)) if lines else text.strip()
            except (ValueError, RecursionError) as error:
                number = _line(file, begin)
                wanted = 'a JSON object with a "text"' if lines else "UTF-8 text"
                raise UserError(f"{file}:{number}: expected {wanted}: {error}") from error


def _text_of(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError("the line has no text")
    text: str = entry["text"]
    return text


def _line(file: Path, place: int) -> int:
    with file.open("rb") as stream:
        return 1 + stream.read(place).count(b"\n")
