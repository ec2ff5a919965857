"""Too short or too long, in tokens as the teacher counts them, or in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.generate.checks import fixed
from evolve.generate.filters.base import Filtered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import FiltersBlock
    from evolve.generate.filters.base import Context
    from evolve.generate.styles.base import Draft


class Length:
    """See the text of the module."""

    keys: ClassVar[tuple[str, ...]] = ("min_tokens", "max_tokens", "min_words", "max_words")

    @staticmethod
    def apply(block: FiltersBlock, drafts: Sequence[Draft], context: Context) -> Filtered:
        """Compare lengths; each row counts under the first limit that it breaks."""
        limits = {key: fixed(getattr(block, key)) for key in Length.keys if getattr(block, key) is not None}
        counts = dict.fromkeys(limits, 0)
        kept = []
        for draft in drafts:
            sizes = {"tokens": draft.tokens, "words": len(draft.written.split())}
            broken = next((key for key in limits if not _within(key, limits[key], sizes)), None)
            if broken is None:
                kept.append(draft)
            else:
                counts[broken] += 1
        return Filtered(kept, counts)


def _within(key: str, limit: int, sizes: dict[str, int]) -> bool:
    end, _, unit = key.partition("_")
    return sizes[unit] >= limit if end == "min" else sizes[unit] <= limit
