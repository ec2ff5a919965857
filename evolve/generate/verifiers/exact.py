"""The same text, whatever the spaces around its words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.generate.split import final_answer
from evolve.generate.verifiers.base import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.verifiers.base import Case


class Exact:
    """See the text of the module."""

    options: ClassVar[frozenset[str]] = frozenset({"ignore_case"})
    needs: ClassVar[frozenset[str]] = frozenset({"field"})

    @staticmethod
    def judge(block: VerifyBlock, cases: Sequence[Case]) -> list[Verdict]:
        """Compare words."""
        return [
            Verdict(_words(case.answer, block.ignore_case) == _words(str(case.reference), block.ignore_case))
            for case in cases
        ]


def _words(text: str, ignore_case: bool) -> list[str]:
    words = final_answer(text).split()
    return [word.casefold() for word in words] if ignore_case else words
