"""Documents into rows: several short ones in one row, long ones cut, and no row longer than allowed.

Cut as little as possible (Ding et al. 2024, Fewer truncations improve language modeling, arXiv:2404.10830):
a document is cut only where it is longer than a row, and each piece goes whole into the open row where it
leaves the least space. Only a few rows are open at a time, so the order of the documents stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.training.rows import IGNORED, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

OPEN_ROWS = 8
"""Rows that are open at a time."""


class Piece(NamedTuple):
    """A document, or a part of one.

    Attributes:
        tokens: int32, (n,), at least one.
        bytes: Bytes of text that it stands for; parts of a document share its bytes by their tokens.
        labels: int32, (n,); None: every token counts.
        reasons: bool, (n,), see :class:`~evolve.training.rows.Row`; None: no token is one.
    """

    tokens: NDArray[np.int32]
    bytes: float
    labels: NDArray[np.int32] | None = None
    reasons: NDArray[np.bool_] | None = None


class Packed(NamedTuple):
    """A row and the bytes of text in it."""

    row: Row
    bytes: float


def pieces(
    tokens: Sequence[int],
    size: int,
    max_length: int,
    labels: Sequence[int] | None = None,
    reasons: Sequence[bool] | None = None,
) -> Iterator[Piece]:
    """Yield the parts of a document of ``size`` bytes, each but the last of ``max_length`` tokens."""
    whole = np.asarray(tokens, dtype=np.int32)
    marks = None if labels is None else np.asarray(labels, dtype=np.int32)
    why = None if reasons is None else np.asarray(reasons, dtype=np.bool_)
    for start in range(0, len(whole), max_length):
        part = slice(start, start + max_length)
        count = len(whole[part])
        yield Piece(
            whole[part],
            size * count / len(whole),
            None if marks is None else marks[part],
            None if why is None else why[part],
        )


def pack(
    documents: Iterable[tuple[Any, ...]],
    max_length: int,
    *,
    packing: bool = True,
    part: str = "data",
) -> Iterator[Packed]:
    """Yield rows, in the order in which they were begun.

    Args:
        documents: Tokens of each document with those that mark its ends, and its bytes; where not every
            token counts also its labels, and then which tokens are reasons (or None).
        max_length: Most tokens of a row, at least 2.
        packing: False: a row holds one document, or one part of it.
        part: What the rows are for.
    """
    waiting: list[_Open] = []
    for tokens, size, *marks in documents:
        for piece in pieces(tokens, size, max_length, *marks):
            fitting = [one for one in waiting if one.free >= len(piece.tokens)] if packing else []
            if fitting:
                min(fitting, key=lambda one: one.free).add(piece)
            else:
                waiting.append(_Open(max_length, piece))
            while waiting and (waiting[0].free == 0 or len(waiting) > (OPEN_ROWS if packing else 0)):
                yield waiting.pop(0).packed(part)
    for one in waiting:
        yield one.packed(part)


class _Open:
    """A row that is being filled."""

    def __init__(self, max_length: int, piece: Piece) -> None:
        self.free = max_length
        self._pieces: list[Piece] = []
        self.add(piece)

    def add(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self.free -= len(piece.tokens)

    def packed(self, part: str) -> Packed:
        tokens = np.concatenate([piece.tokens for piece in self._pieces])
        lengths = tuple(len(piece.tokens) for piece in self._pieces)
        labels = np.concatenate(
            [piece.tokens if piece.labels is None else piece.labels for piece in self._pieces]
        )
        # Nothing of the document stands before its first token, so there is nothing to predict it from.
        labels[np.cumsum((0, *lengths[:-1]))] = IGNORED
        reasons = None
        if any(piece.reasons is not None for piece in self._pieces):
            reasons = np.concatenate(
                [
                    np.zeros(len(piece.tokens), np.bool_) if piece.reasons is None else piece.reasons
                    for piece in self._pieces
                ]
            )
        row = Row(tokens, labels, lengths, part, reasons)
        return Packed(row, sum(piece.bytes for piece in self._pieces))
