"""Sequences with a common beginning become one row of a batch, in which the beginning stands once.

A row holds a tree of tokens in depth-first order. A token attends to its ancestors and to itself; the
descendants of the token at ``j`` are those at ``j + 1`` up to ``end[j]``, so key ``j`` is seen by query
``i`` where ``j <= i < end[j]``. The position of a token is its depth. Then every token has the neighbours
and the position that it has in a sequence of its own, and gets the same logits.

Pure planning: nothing here knows torch or a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROW = 256
"""Tokens up to which a row may always grow. Longer ones pay for attention to what their mask hides."""
_SHARE = 4
"""A sequence joins a row if at least one in so many of its tokens is there already."""
_ENOUGH = 1024
"""Tokens from which on a batch is large enough to end it where padding would begin."""
_LIKE = 0.8
_ELEMENTS = 1 << 26
"""Most elements of an attention mask."""


class Asked(NamedTuple):
    """One request: the tokens that the model reads, and what should follow the last of them.

    Attributes:
        read: Input tokens.
        targets: Target of each of the last ``len(targets)`` input tokens.
    """

    read: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass
class Row:
    """One row of a batch.

    Attributes:
        tokens: The tokens in depth-first order.
        depth: Position of each token in its sequence.
        end: For each token, where its descendants end (exclusive).
        asked: ``(request, places of its last input tokens)``.
    """

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    asked: list[tuple[int, list[int]]] = field(default_factory=list)
    _path: list[int] = field(default_factory=list)
    _first: int = 0

    @property
    def branches(self) -> bool:
        """Whether it holds more than one sequence, so that it needs a mask."""
        return any(end < len(self.tokens) for end in self.end)

    def common(self, read: Sequence[int]) -> int:
        """Return how many first tokens of ``read`` the last sequence has, too."""
        count = 0
        for place, token in zip(self._path, read, strict=False):
            if self.tokens[place] != token:
                break
            count += 1
        return count

    def takes(self, read: Sequence[int], *, share: bool) -> bool:
        """Whether ``read`` should join this row."""
        common = self.common(read)
        new = len(read) - common
        if new == 0 or not share or common * _SHARE < len(read):
            return new == 0
        return len(self.tokens) + new <= max(_ROW, 2 * self._first)

    def add(self, number: int, asked: Asked) -> None:
        """Append what is not there yet; sequences come in lexicographic order."""
        common = self.common(asked.read)
        for place in self._path[common:]:
            self.end[place] = len(self.tokens)
        del self._path[common:]
        for depth, token in enumerate(asked.read[common:], common):
            self._path.append(len(self.tokens))
            self.tokens.append(token)
            self.depth.append(depth)
            self.end.append(0)
        for place in self._path:
            self.end[place] = len(self.tokens)
        self._first = self._first or len(asked.read)
        self.asked.append((number, self._path[-len(asked.targets) :]))

    @property
    def logits(self) -> int:
        """Number of places whose logits are needed."""
        return len({place for _, places in self.asked for place in places})


def rows_of(requests: Sequence[Asked], *, share: bool) -> list[Row]:
    """Return rows that hold every request, equal inputs once; with ``share``, common beginnings once, too."""
    rows: list[Row] = []
    for number in sorted(range(len(requests)), key=lambda n: requests[n].read):
        if not rows or not rows[-1].takes(requests[number].read, share=share):
            rows.append(Row())
        rows[-1].add(number, requests[number])
    return rows


def batches_of(rows: Sequence[Row], *, size: int, logits: int) -> Iterator[list[Row]]:
    """Yield batches of rows of like length, longest first, those that need a mask apart from the others.

    Args:
        rows: The rows.
        size: Most rows of a batch.
        logits: Most places whose logits a batch may need; one row may have more.
    """
    for branches in (True, False):
        batch: list[Row] = []
        needed = 0
        for row in sorted(
            (row for row in rows if row.branches is branches), key=lambda row: len(row.tokens), reverse=True
        ):
            width = len((batch or [row])[0].tokens)
            masked = branches and (len(batch) + 1) * width * width > _ELEMENTS
            padded = len(batch) * width > _ENOUGH and len(row.tokens) < _LIKE * width
            if batch and (len(batch) == size or needed + row.logits > logits or masked or padded):
                yield batch
                batch, needed = [], 0
            batch.append(row)
            needed += row.logits
        if batch:
            yield batch
