"""Rows of the same words: the first stays."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar

from evolve.generate.filters.base import Filtered, whole_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import FiltersBlock
    from evolve.generate.filters.base import Context
    from evolve.generate.styles.base import Draft


class ExactDuplicates:
    """See the text of the module."""

    keys: ClassVar[tuple[str, ...]] = ("exact_duplicates",)

    @staticmethod
    def apply(block: FiltersBlock, drafts: Sequence[Draft], context: Context) -> Filtered:
        """Compare rows with their spaces made equal. Signs count: 3 - 4 is not 3 + 4."""
        seen: set[bytes] = set()
        kept = []
        for draft in drafts:
            digest = hashlib.sha256(" ".join(whole_text(draft).split()).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                kept.append(draft)
        return Filtered(kept, {"exact_duplicates": len(drafts) - len(kept)})
