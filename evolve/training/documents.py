"""Corpora: a file or a folder of files, its documents by number, and so many bytes of them.

Documents are found by their places and read when they are asked for: a corpus is never in memory as text.
Budgets are bytes of UTF-8, so that a model with another vocabulary sees the same text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import UserError
from evolve.statistics.corpus import documents_at, places, shuffled
from evolve.training.kept import kept
from evolve.weights.content import TEXT_SUFFIXES, data_content, data_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_PARQUET = ".parquet"


class Documents:
    """The documents of a file or a folder, numbered in the order of its files.

    A ``.jsonl`` file has a document a line, an object with the key ``text``; a ``.parquet`` file a document a
    row, in the column ``text``. In any other file empty lines stand between documents.
    """

    def __init__(
        self, path: Path | str, *, content: str | None = None, read: Callable[[Any], str] | None = None
    ) -> None:
        """Find every document; none is read yet.

        Args:
            path: A file, or a folder whose text files are read in the order of their names.
            content: ``sha256:...`` that the path must hold; None: whatever it holds.
            read: Makes a text of a JSON line, such as a conversation; absent: its ``text``.

        Raises:
            UserError: It cannot be read, holds something else, or has no documents.
        """
        self.content = data_content(path)
        if content not in (None, self.content):
            raise UserError(
                f"the corpus {path} holds {self.content}, not {content}: it changed, or another file is "
                "there; bring back the one that was meant"
            )
        self._read = read
        self._files = [_as_lines(file) for file in data_files(path)]
        found = [
            (number, begin, end) for number, file in enumerate(self._files) for begin, end in places(file)
        ]
        if not found:
            raise UserError(f"{path} holds no text: files are {', '.join(TEXT_SUFFIXES)}")
        self._places = np.array(found, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def texts(self, numbers: Iterable[int]) -> Iterator[str]:
        """Yield the documents with these numbers, in this order.

        Raises:
            UserError: A document is no text.
        """
        yield from self._read_all(numbers, self._read)

    def numbers_at(self, key: str, numbers: Iterable[int]) -> Iterator[float]:
        """Yield the number that stands under ``key`` beside each text, as for a quality.

        Raises:
            UserError: There is none, or it is not finite.
        """

        def read(entry: Any) -> str:
            value = entry.get(key) if isinstance(entry, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"no finite number under {key!r}")
            return repr(float(value))

        for text in self._read_all(numbers, read):
            try:
                yield float(text)
            except ValueError as error:
                raise UserError(f"only lines of JSON and parquet have a field {key!r}") from error

    def _read_all(self, numbers: Iterable[int], read: Callable[[Any], str] | None) -> Iterator[str]:
        # One file is opened once for all of its documents that follow each other.
        for file, run in itertools.groupby(
            (self._places[number] for number in numbers), lambda it: int(it[0])
        ):
            where = ((int(begin), int(end)) for _, begin, end in run)
            yield from documents_at(self._files[file], where, read)


@dataclass(frozen=True)
class Chosen:
    """Documents that are trained on, and how much of each.

    Attributes:
        documents: Where they are.
        numbers: int64, (n,); in order, and none twice.
        sizes: int64, (n,); bytes of each that are used: all, but perhaps of the last.
        left_out: Why others were left out, to how many: ``duplicates``, ``empty``.
    """

    documents: Documents
    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return int(self.sizes.sum())

    def first(self, most: int) -> Chosen:
        """Return the first ``most`` bytes of these."""
        before = np.cumsum(self.sizes) - self.sizes
        keep = before < most
        sizes = np.minimum(self.sizes, most - before)[keep]
        return Chosen(self.documents, self.numbers[keep], sizes, self.left_out)

    def ordered(self, order: NDArray[np.int64] | Sequence[int]) -> Chosen:
        """Return the same documents in another order."""
        index = np.asarray(order, dtype=np.int64)
        return Chosen(self.documents, self.numbers[index], self.sizes[index], self.left_out)

    def texts(self) -> Iterator[str]:
        """Yield each text, cut to its size at the end of a character."""
        found = self.documents.texts(map(int, self.numbers))
        for text, size in zip(found, self.sizes.tolist(), strict=True):
            yield cut(text, size)


def choose(documents: Documents, *, seed: int, max_bytes: int | None = None, dedup: bool = False) -> Chosen:
    """Return documents in the order that the seed decides, until there are bytes enough.

    Args:
        documents: Where they come from.
        seed: Decides the order.
        max_bytes: Most bytes; the last document is cut. None: all.
        dedup: Whether a document whose text was there before is left out.

    Raises:
        UserError: A document is no text, or nothing is left.
    """
    order = shuffled(len(documents), seed)
    numbers: list[int] = []
    sizes: list[int] = []
    seen: set[bytes] = set()
    left_out = {"empty": 0, "duplicates": 0}
    left = max_bytes
    for number, text in zip(order.tolist(), documents.texts(map(int, order)), strict=True):
        if left is not None and left <= 0:
            break
        raw = _bytes(text)
        digest = hashlib.blake2b(raw.strip(), digest_size=16).digest() if dedup else b""
        if not raw.strip():
            left_out["empty"] += 1
        elif dedup and digest in seen:
            left_out["duplicates"] += 1
        else:
            seen.add(digest)
            numbers.append(number)
            sizes.append(len(raw) if left is None else min(len(raw), left))
            left = None if left is None else left - len(raw)
    if not numbers:
        raise UserError("the corpus holds no text that is not empty")
    return Chosen(documents, np.array(numbers, np.int64), np.array(sizes, np.int64), left_out)


def cut(text: str, size: int) -> str:
    """Return the longest beginning of a text that has at most ``size`` bytes."""
    return _bytes(text)[:size].decode("utf-8", "ignore")


def _bytes(text: str) -> bytes:
    # JSON can hold half a character, which no tokenizer takes.
    return text.encode("utf-8", "replace")


def _as_lines(file: Path) -> Path:
    """Return the file itself; of a parquet file its texts as lines, which stand in the cache."""
    if file.suffix.lower() != _PARQUET:
        return file
    return kept("texts", {"parquet": data_content(file)}, ".jsonl", lambda out: _write_lines(file, out))


def _write_lines(file: Path, out: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table, out.open("w", encoding="utf-8") as lines:
            for batch in table.iter_batches(batch_size=256):
                for entry in batch.to_pylist():
                    lines.write(json.dumps(entry, default=str) + "\n")
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} cannot be read as parquet: {error}") from error
