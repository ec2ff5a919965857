"""What a verifier is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.generate.blocks import VerifyBlock


@dataclass(frozen=True)
class Case:
    """One answer to judge.

    Attributes:
        answer: The teacher's answer, without its reasons.
        reference: The right answer, or None where the block names none.
        row: The prompt's line, without its turns.
    """

    answer: str
    reference: Any
    row: Mapping[str, Any]


class Verdict(NamedTuple):
    """What a verifier says of a case.

    Attributes:
        right: Whether the answer is right.
        trouble: Why it could not be judged, or empty: it ran out of time, or code of the user's raised.
    """

    right: bool
    trouble: str = ""


class Verifier(Protocol):
    """One way to tell right answers."""

    options: ClassVar[frozenset[str]]
    """Keys of the block that belong to some kinds only, and to this one."""
    needs: ClassVar[frozenset[str]]
    """Keys that must be given."""

    @staticmethod
    def judge(block: VerifyBlock, cases: Sequence[Case]) -> list[Verdict]:
        """Return a verdict for each case.

        Raises:
            UserError: It cannot judge at all, such as a file of the user's that cannot be imported.
        """
        ...
