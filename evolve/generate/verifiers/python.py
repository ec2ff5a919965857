"""A function of the user's: ``verify(answer, reference, row) -> bool``, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from evolve.errors import UserError
from evolve.generate.verifiers.sandbox import judge_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.verifiers.base import Case, Verdict


class Python:
    """See the text of the module."""

    options: ClassVar[frozenset[str]] = frozenset({"file", "function", "timeout"})
    needs: ClassVar[frozenset[str]] = frozenset({"file"})

    @staticmethod
    def judge(block: VerifyBlock, cases: Sequence[Case]) -> list[Verdict]:
        """Call the function for each case. What it raises makes a case wrong, unless it raises for all."""
        assert block.file is not None
        path = Path(block.file.path).expanduser().absolute()
        job = {"kind": "python", "file": str(path), "function": block.function}
        verdicts = judge_apart(job, cases, block.timeout)
        troubles = [verdict.trouble for verdict in verdicts if verdict.trouble]
        if troubles and len(troubles) == len(verdicts):
            raise UserError(f"{block.file.path}: {block.function} failed on every answer: {troubles[-1]}")
        return verdicts
