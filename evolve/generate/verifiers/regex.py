"""A regular expression that the answer must hold; its first group must be the reference, if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.generate.verifiers.sandbox import judge_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.verifiers.base import Case, Verdict


class Regex:
    """See the text of the module."""

    options: ClassVar[frozenset[str]] = frozenset({"pattern", "ignore_case", "timeout"})
    needs: ClassVar[frozenset[str]] = frozenset({"pattern"})

    @staticmethod
    def judge(block: VerifyBlock, cases: Sequence[Case]) -> list[Verdict]:
        """Search in a process of its own: an expression may take for ever on a text that a stranger wrote."""
        job = {"kind": "regex", "pattern": block.pattern, "ignore_case": block.ignore_case}
        return judge_apart(job, cases, block.timeout)
