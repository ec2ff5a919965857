"""Rows that share a run of words with an item of the score, in prompt, reasons or answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from evolve.generate.filters.base import split_by, whole_text, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from evolve.generate.blocks import FiltersBlock
    from evolve.generate.filters.base import Context, Filtered, Gram
    from evolve.generate.styles.base import Draft

_SHORTEST = 5
"""A shorter item is not sought: its words may stand anywhere."""
_TEMPLATE = 10
"""A run that stands in more items is the task's wording."""


class NgramOverlap:
    """See the text of the module."""

    keys: ClassVar[tuple[str, ...]] = ("ngram_overlap",)

    @staticmethod
    def apply(block: FiltersBlock, drafts: Sequence[Draft], context: Context) -> Filtered:
        """Look for the banned runs; where none are known, every row stays."""
        banned = context.banned or frozenset()
        lengths = sorted({len(gram) for gram in banned})
        return split_by(drafts, lambda draft: not _holds(whole_text(draft), banned, lengths), "ngram_overlap")


def banned_ngrams(texts: Iterable[str], length: int) -> frozenset[Gram]:
    """Return the runs of words that rows may not share with some items.

    As :mod:`evolve.score.overlap` counts them: without case and punctuation; an item that is shorter than a
    run counts as a whole; runs that stand in more than ten items are the task's template.

    Args:
        texts: What each item asks.
        length: Words of a run, at least 3.
    """
    items: Counter[Gram] = Counter()
    for text in texts:
        found = words(text)
        if min(_SHORTEST, length) <= len(found) < length:
            items[tuple(found)] += 1
        items.update({tuple(found[at : at + length]) for at in range(len(found) - length + 1)})
    return frozenset(gram for gram, count in items.items() if count <= _TEMPLATE)


def _holds(text: str, banned: AbstractSet[Gram], lengths: Sequence[int]) -> bool:
    found = words(text)
    return any(
        tuple(found[at : at + length]) in banned
        for length in lengths
        for at in range(len(found) - length + 1)
    )
