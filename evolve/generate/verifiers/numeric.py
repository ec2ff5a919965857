"""The same number: the last one of the answer against the last one of the reference."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from evolve.generate.split import final_answer
from evolve.generate.verifiers.base import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.verifiers.base import Case

_MOST_DIGITS = 400
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    # A sign behind a digit or a bracket is an operator.
    rf"(?:(?<![\w)])[-+\u2212])?\s?(?:{_INTEGER}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}})?"
    rf"(?:\s?/\s?{_INTEGER}(?![\d.]))?\s?%?",
    re.ASCII,
)


class Numeric:
    """See the text of the module."""

    options: ClassVar[frozenset[str]] = frozenset({"tolerance"})
    needs: ClassVar[frozenset[str]] = frozenset({"field"})

    @staticmethod
    def judge(block: VerifyBlock, cases: Sequence[Case]) -> list[Verdict]:
        """Compare numbers, exactly where they are equal and else within the tolerance."""
        return [Verdict(_same(case.answer, case.reference, block.tolerance)) for case in cases]


def _same(answer: str, reference: object, tolerance: float) -> bool:
    given, right = last_number(answer), last_number(str(reference))
    if given is None or right is None:
        return False
    return given == right or abs(given - right) <= Fraction(tolerance) * abs(right)


def last_number(text: str) -> Fraction | None:
    """Return the last number of a final answer, exactly, such as 1,234.5, -3/4, 1e-3 or 50%, or None."""
    found = [match.group() for match in _NUMBER.finditer(final_answer(text))]
    if not found or len(found[-1]) > _MOST_DIGITS:
        return None
    word = "".join(found[-1].split()).replace(",", "").replace("\u2212", "-")
    percent = word.endswith("%")
    top, _, bottom = word.rstrip("%").partition("/")
    try:
        value = Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value
