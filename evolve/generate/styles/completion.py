"""Answers as they are: sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.generate.styles.base import prompts_of_file, whole_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.generate.blocks import GenerateBlock
    from evolve.generate.exchange import Answer
    from evolve.generate.prompts import Prompt
    from evolve.generate.styles.base import Draft


class Completion:
    """See the text of the module."""

    keys: ClassVar[frozenset[str]] = frozenset({"prompts", "instruction"})
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})

    @staticmethod
    def prompts(block: GenerateBlock) -> Iterator[Prompt]:
        """Yield the prompts of the file."""
        return prompts_of_file(block)

    @staticmethod
    def rows(block: GenerateBlock, prompt: Prompt, sample: int, answer: Answer) -> Iterator[Draft]:
        """Yield the answer."""
        return whole_answer(block, prompt, sample, answer)
