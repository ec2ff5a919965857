"""A text as a tokenizer cuts it: each distinct word once, as its tokens, with its number of occurrences."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from evolve.stages.vocab.counts import Count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from evolve.weights.bpe import Bpe

_BATCH = 256
_LONGEST = 128
"""Where a tokenizer cuts no words, so many tokens count as one: a pair across the cut is not counted."""


class Text:
    """Words and their numbers of occurrences.

    Attributes:
        counts: Tokens of a word, as the bytes of an int32 array, to its occurrences.
        size: Bytes of the text in UTF-8.
        tokens: Tokens of the text.
    """

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self.size = 0
        self.tokens = 0


def read(texts: Iterable[str], bpe: Bpe) -> Text:
    """Cut a text once. A word ends where the tokenizer ends it, at a special token, and before a space."""
    found = Text()
    cutter = _Cutter(bpe)
    documents = iter(texts)
    while batch := list(islice(documents, _BATCH)):
        found.size += sum(len(text.encode()) for text in batch)
        for encoding in bpe.backend.encode_batch(batch, add_special_tokens=False):
            ids = np.array(encoding.ids, np.int32)
            words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
            found.tokens += len(ids)
            found.counts.update(cutter.words(ids, words))
    return found


def merged(domain: Text, general: Text | None) -> Iterator[tuple[tuple[int, ...], Count]]:
    """Yield every word with its counts in both texts, sorted by its bytes: the order of files has no say."""
    others: Mapping[bytes, int] = general.counts if general is not None else {}
    for word in sorted(domain.counts.keys() | others.keys()):
        tokens = tuple(np.frombuffer(word, np.int32).tolist())
        yield tokens, Count(domain.counts.get(word, 0), others.get(word, 0))


class _Cutter:
    """Cuts the tokens of a text into words."""

    def __init__(self, bpe: Bpe) -> None:
        space = bpe.space
        count = len(bpe.tokens)
        self._opens = np.fromiter((token.startswith(space) for token in bpe.tokens), bool, count)
        # A space after a space may be joined with it: indentation is one word.
        self._only = np.fromiter((not token.strip(space) for token in bpe.tokens), bool, count)
        self._blocked = np.zeros(count, bool)
        self._blocked[list(bpe.blocked)] = True

    def words(self, ids: NDArray[np.int32], groups: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the words of one document, each as the bytes of its ids."""
        if not len(ids):
            return
        before, after = ids[:-1], ids[1:]
        cut = groups[:-1] != groups[1:]
        cut |= self._opens[after] & ~self._only[before]
        cut |= self._blocked[before] | self._blocked[after]
        ends = np.append(np.flatnonzero(cut) + 1, len(ids))
        raw = ids.tobytes()
        begin = 0
        for end in ends.tolist():
            for start in range(begin, end, _LONGEST):
                yield raw[4 * start : 4 * min(start + _LONGEST, end)]
            begin = end
