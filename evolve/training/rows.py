"""What is trained on: rows of tokens in the order in which they are seen, of one or several documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

IGNORED = -100
"""The label of a token that does not count."""

WRITTEN = "written"
"""``Row.part`` of what the student has just written itself."""


@dataclass(frozen=True)
class Row:
    """One sequence as the model sees it: a document, or several packed one behind the other.

    Documents of a row do not see each other: positions begin again at 0, and attention ends at the border.

    Attributes:
        tokens: int32, (length,).
        labels: int32, (length,); each stands at its token (the shift is the loss's business), ``IGNORED``
            where a token does not count. The first token of every document is ignored.
        lengths: Tokens of each document, in order; together the length of the row.
        part: What the row is for: ``data``, ``replay`` of an older corpus, or ``WRITTEN`` by the student.
        reasons: bool, (length,), or None. Which tokens are reasons for an answer, not the answer; they may
            have another weight in the loss.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    lengths: tuple[int, ...]
    part: str = "data"
    reasons: NDArray[np.bool_] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """The whole training data of a stage, in order; a run goes over it once (epochs are written out).

    Attributes:
        rows: At least one.
        counts: What is shown before training: documents, tokens, bytes, by part; what was dropped and why.
    """

    rows: Sequence[Row]
    counts: Mapping[str, int]
