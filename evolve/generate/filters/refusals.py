"""Answers that decline to answer, told by how they begin.

Only the beginning counts, and only turns of phrase that speak of the one who answers: an answer about an
apology is none. English alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from evolve.generate.filters.base import split_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import FiltersBlock
    from evolve.generate.filters.base import Context, Filtered
    from evolve.generate.styles.base import Draft

_UNABLE = (
    r"I(?: am|'m)? (?:really |very )?(?:can ?not|can't|could ?n[o']t|won't|will not|unable to|not able to|"
    r"not comfortable|must decline|have to decline|decline to)"
)
_VERBS = (
    r"(?: to)?(?: \w+ly)? (?:help|assist|answer|provide|comply|fulfill|fulfil|do that|do this|discuss|engage|"
    r"create|generate|write|continue|support|respond|give|share|offer|complete|process|comment)"
)
_REFUSAL = re.compile(
    rf"(?:(?:I(?:'m| am) (?:(?:so|very|really|deeply) )?sorry|I apologi[sz]e|sorry|apologies|unfortunately)"
    rf"[^.!?\n]{{0,40}}?[,.:;]?\s*(?:but |that )?(?:{_UNABLE}\b)"
    rf"|{_UNABLE}{_VERBS}\b"
    r"|as an? (?:AI|(?:large )?language model)[^.!?\n]{0,60}?,?\s*I "
    r"(?:can ?not|can't|do ?n[o']t|am not|won't|must)"
    r"|I must (?:respectfully )?(?:decline|refuse)\b"
    r"|I(?:'m| am) not (?:able|allowed|permitted) to\b)",
    re.IGNORECASE,
)
_BEGINNING = 200


def refuses(text: str) -> bool:
    """Whether a text begins as a refusal does."""
    start = text.lstrip(" \t\n\"'*#>").replace("\u2019", "'")
    return _REFUSAL.match(start[:_BEGINNING]) is not None


class Refusals:
    """See the text of the module."""

    keys: ClassVar[tuple[str, ...]] = ("refusals",)

    @staticmethod
    def apply(block: FiltersBlock, drafts: Sequence[Draft], context: Context) -> Filtered:
        """Look at the teacher's turn, and at its reasons."""
        return split_by(
            drafts,
            lambda draft: not refuses(draft.answer.content) and not refuses(draft.answer.reasoning or ""),
            "refusals",
        )
