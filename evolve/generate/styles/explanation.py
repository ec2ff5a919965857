"""Explanation traces: system messages that ask why (Orca, Mukherjee et al. 2023, arXiv:2306.02707).

Each prompt draws one system message by seed. Rows keep it, as Orca's do, unless ``keep_system`` is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.generate import draws
from evolve.generate.prompts import read_lines, read_prompts
from evolve.generate.styles.base import addressed, whole_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.generate.blocks import GenerateBlock
    from evolve.generate.exchange import Answer
    from evolve.generate.prompts import Prompt
    from evolve.generate.styles.base import Draft


class Explanation:
    """See the text of the module."""

    keys: ClassVar[frozenset[str]] = frozenset({"prompts", "system_prompts", "instruction"})
    needs: ClassVar[frozenset[str]] = frozenset({"prompts", "system_prompts"})

    @staticmethod
    def prompts(block: GenerateBlock) -> Iterator[Prompt]:
        """Yield the prompts of the file, each with a system message."""
        assert block.prompts is not None and block.system_prompts is not None
        systems = read_lines(block.system_prompts.path)
        for prompt in read_prompts(block.prompts.path):
            system = draws.one(systems, block.seed, "system", prompt.name)
            yield addressed(prompt, block, system, block.instruction or "")

    @staticmethod
    def rows(block: GenerateBlock, prompt: Prompt, sample: int, answer: Answer) -> Iterator[Draft]:
        """Yield the answer."""
        return whole_answer(block, prompt, sample, answer)
