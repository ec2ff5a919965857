"""What a filter is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from evolve.generate.blocks import FiltersBlock
    from evolve.generate.styles.base import Draft

Gram: TypeAlias = "tuple[str, ...]"

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Context:
    """What filters may need besides the rows.

    Attributes:
        banned: Runs of words that no row may hold, or None where nobody says which.
        judge: Returns text to points, for texts that the judge gave points to.
    """

    banned: AbstractSet[Gram] | None
    judge: Callable[[Sequence[Draft]], Sequence[int | None]] | None = None


class Filtered(NamedTuple):
    """What a filter leaves.

    Attributes:
        drafts: The rows that stay, in their order.
        removed: Why to how many rows.
    """

    drafts: list[Draft]
    removed: dict[str, int]


class Filter(Protocol):
    """One reason to leave rows out."""

    keys: ClassVar[tuple[str, ...]]
    """Keys of the block that switch it on."""

    @staticmethod
    def apply(block: FiltersBlock, drafts: Sequence[Draft], context: Context) -> Filtered:
        """Return the rows that stay."""
        ...


def words(text: str) -> list[str]:
    """Return the words of a text, without case and punctuation, as the score's overlap counts them."""
    return _WORD.findall(text.casefold())


def whole_text(draft: Draft) -> str:
    """Return everything in a row but its system message: what asks alike for all rows tells none apart."""
    parts = [turn.content for turn in draft.conversation.messages[:-1] if turn.role != "system"]
    return "\n".join([*parts, draft.written])


def split_by(drafts: Sequence[Draft], keep: Callable[[Draft], bool], why: str) -> Filtered:
    """Return the rows that a test of each alone leaves."""
    kept = [draft for draft in drafts if keep(draft)]
    return Filtered(kept, {why: len(drafts) - len(kept)})
