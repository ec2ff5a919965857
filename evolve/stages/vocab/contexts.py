"""Which old tokens stand in the same contexts of a text as new ones. Counted, nothing is trained.

A context is one of the 1,000 commonest old tokens within 4 tokens on either side. A new token's contexts are
those around the pieces that it is made of, in the text as the old tokenizer cuts it: so they do not depend on
how many new tokens there are. Likeness is the cosine of positive pointwise mutual information (Bullinaria and
Levy 2007, "Extracting semantic representations from word co-occurrence statistics"); only the 4,000 old
tokens that are commonest in the text are compared. It reads at most 2 million tokens of the text: about
100 MB of memory, and seconds. Of a token that is seen fewer than 5 times it says nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evolve.stages.vocab.initialisers.base import Mixture
    from evolve.weights.bpe import Bpe

WINDOW = 4
COLUMNS = 1000
SUBJECTS = 4000
NEAREST = 8
LEAST = 5
MOST_TOKENS = 2_000_000

_BATCH = 256
_BORDER = -1
_Ids: TypeAlias = "NDArray[np.int64]"
_Matrix: TypeAlias = "NDArray[np.float64]"


def nearest(pieces: Sequence[Sequence[int]], texts: Iterable[str], bpe: Bpe) -> list[Mixture | None]:
    """Return, for each new token, the old tokens in the likest contexts, with their likeness.

    Args:
        pieces: For each new token the old ones that it is made of.
        texts: The documents.
        bpe: The old tokenizer.

    Returns:
        For each at most ``NEAREST`` ids, and likeness in (0, 1]; None for one that is too rare, or like
        nothing.
    """
    ids = _stream(texts, bpe)
    counts = np.bincount(ids[ids >= 0], minlength=len(bpe.tokens))
    counts[list(bpe.blocked)] = 0
    common = np.argsort(-counts, kind="stable")
    columns = common[:COLUMNS][counts[common[:COLUMNS]] > 0]
    subjects = common[:SUBJECTS][counts[common[:SUBJECTS]] >= LEAST]
    if not len(subjects):
        return [None] * len(pieces)
    column_of = np.full(len(bpe.tokens) + 1, -1, np.int64)  # the last one is the border's
    column_of[columns] = np.arange(len(columns))
    around = column_of[ids]
    share = counts[columns] / counts[columns].sum()
    known = _informative(_of_subjects(ids, around, subjects, len(bpe.tokens), len(columns)), share)
    found: list[Mixture | None] = []
    places = _Places(ids)
    for own in pieces:
        begins = places.of(np.array(own, np.int64))
        if len(begins) < LEAST:
            found.append(None)
            continue
        row = _informative(_around(around, begins, len(own), len(columns))[None], share)
        # Rounded, so that no order of additions shows.
        likeness = np.round(known @ row[0], 6)
        best = np.argsort(-likeness, kind="stable")[:NEAREST]
        best = best[likeness[best] > 0]
        found.append((subjects[best], likeness[best]) if len(best) else None)
    return found


def _stream(texts: Iterable[str], bpe: Bpe) -> _Ids:
    """Return the ids of all documents, with a border around each."""
    border = np.full(WINDOW, _BORDER, np.int64)
    parts: list[Any] = [border]
    left = MOST_TOKENS
    documents = iter(texts)
    while left > 0 and (batch := list(islice(documents, _BATCH))):
        for encoding in bpe.backend.encode_batch(batch, add_special_tokens=False):
            ids = np.array(encoding.ids[: max(left, 0)], np.int64)
            parts += [ids, border]
            left -= len(ids)
    return np.concatenate(parts)


def _of_subjects(ids: _Ids, around: _Ids, subjects: _Ids, tokens: int, width: int) -> _Matrix:
    """Return how often each column stands near each subject, ``[subjects, columns]``."""
    row_of = np.full(tokens + 1, -1, np.int64)
    row_of[subjects] = np.arange(len(subjects))
    rows = row_of[ids]
    total = np.zeros(len(subjects) * width)
    for distance in range(1, WINDOW + 1):
        for own, other in ((rows[:-distance], around[distance:]), (rows[distance:], around[:-distance])):
            both = (own >= 0) & (other >= 0)
            total += np.bincount(own[both] * width + other[both], minlength=len(total))
    result: _Matrix = total.reshape(len(subjects), width)
    return result


def _around(around: _Ids, begins: _Ids, length: int, width: int) -> _Matrix:
    """Return how often each column stands near some places, ``[columns]``."""
    offsets = [*range(-WINDOW, 0), *range(length, length + WINDOW)]
    near = around[begins[:, None] + np.array(offsets)]
    found: _Matrix = np.zeros(width)
    np.add.at(found, near[near >= 0], 1.0)
    return found


def _informative(counts: _Matrix, share: _Matrix) -> _Matrix:
    """Return positive pointwise mutual information, each row of length 1 or 0."""
    whole = counts.sum(1, keepdims=True)
    ratio = counts / (np.maximum(whole, 1) * share)
    found = np.log(ratio, out=np.zeros_like(ratio), where=ratio > 1)
    lengths = np.sqrt(np.square(found).sum(1, keepdims=True))
    result: _Matrix = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
    return result


class _Places:
    """Where sequences of tokens begin."""

    def __init__(self, ids: _Ids) -> None:
        self._ids = ids
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def of(self, tokens: _Ids) -> _Ids:
        """Return the places at which ``tokens`` begin, ascending. Borders keep them from the ends."""
        ends = np.searchsorted(self._sorted, tokens, "left"), np.searchsorted(self._sorted, tokens, "right")
        rarest = int(np.argmin(ends[1] - ends[0]))
        begins = self._order[ends[0][rarest] : ends[1][rarest]] - rarest
        begins = begins[(begins >= WINDOW) & (begins + len(tokens) + WINDOW <= len(self._ids))]
        for offset, token in enumerate(tokens.tolist()):
            begins = begins[self._ids[begins + offset] == token]
        return begins
