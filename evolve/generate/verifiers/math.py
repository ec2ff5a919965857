"""The same mathematics, by Math-Verify: LaTeX, sets, intervals, equations."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, ClassVar

from evolve.errors import MissingDependency
from evolve.generate.verifiers.sandbox import judge_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.verifiers.base import Case, Verdict


class Math:
    """See the text of the module."""

    options: ClassVar[frozenset[str]] = frozenset({"timeout"})
    needs: ClassVar[frozenset[str]] = frozenset({"field"})

    @staticmethod
    def judge(block: VerifyBlock, cases: Sequence[Case]) -> list[Verdict]:
        """Judge in a process of its own: some expressions take for ever, and its own clock needs signals."""
        if importlib.util.find_spec("math_verify") is None:
            raise MissingDependency("verify: {kind: math}", "evolve[verify]")
        return judge_apart({"kind": "math"}, cases, block.timeout)
