"""Reasoning traces, of which ``verify`` keeps the right ones (DeepSeek-R1 2025, arXiv:2501.12948, 2.3.3).

Reasons and answer are kept apart in the rows; how they stand together is the business of ``rationale``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.generate.styles.base import prompts_of_file, whole_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.generate.blocks import GenerateBlock
    from evolve.generate.exchange import Answer
    from evolve.generate.prompts import Prompt
    from evolve.generate.styles.base import Draft

INSTRUCTION = (
    "Think step by step. Then write the final answer on a line of its own that begins with 'Answer:'."
)
"""What the teacher is told, unless the block says something else; the student never sees it."""


class Reasoning:
    """See the text of the module."""

    keys: ClassVar[frozenset[str]] = frozenset({"prompts", "instruction"})
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})

    @staticmethod
    def prompts(block: GenerateBlock) -> Iterator[Prompt]:
        """Yield the prompts of the file."""
        return prompts_of_file(block, INSTRUCTION)

    @staticmethod
    def rows(block: GenerateBlock, prompt: Prompt, sample: int, answer: Answer) -> Iterator[Draft]:
        """Yield the answer; none where it has no reasons."""
        for draft in whole_answer(block, prompt, sample, answer):
            if draft.answer.reasoning is not None:
                yield draft
