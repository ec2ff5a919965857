"""What a style is: how prompts are made, and how an answer becomes rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from evolve.conversations import Conversation, Message
from evolve.generate.prompts import Prompt, read_prompts, with_instruction, with_system
from evolve.generate.split import split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evolve.generate.blocks import GenerateBlock
    from evolve.generate.exchange import Answer


@dataclass(frozen=True)
class Draft:
    """A row before it is verified and filtered.

    Attributes:
        prompt: What it answers.
        sample: Which answer to the prompt.
        part: Which row of that answer.
        conversation: The row.
        tokens: What the teacher counted for it; of an answer with several rows an estimate.
        about: What is noted of it.
    """

    prompt: Prompt
    sample: int
    part: int
    conversation: Conversation
    tokens: int
    about: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def order(self) -> tuple[str, int, int]:
        """Where it stands: by what it asks, so that the order of the prompts' file does not count."""
        return self.prompt.name, self.sample, self.part

    @property
    def answer(self) -> Message:
        """The teacher's turn."""
        return self.conversation.messages[-1]

    @property
    def written(self) -> str:
        """Everything that the teacher wrote, reasons first."""
        return "\n".join(part for part in (self.answer.reasoning, self.answer.content) if part)

    def noting(self, **about: Any) -> Draft:
        """Return the row with more noted of it."""
        return replace(self, about={**self.about, **about})


class Style(Protocol):
    """One way to make training data of a teacher."""

    keys: ClassVar[frozenset[str]]
    """Keys of the block that belong to some styles only, and to this one."""
    needs: ClassVar[frozenset[str]]
    """Those of them that must be given."""

    @staticmethod
    def prompts(block: GenerateBlock) -> Iterator[Prompt]:
        """Yield what is asked.

        Raises:
            UserError: A file of the block cannot be read. Names file, line and mend.
        """
        ...

    @staticmethod
    def rows(block: GenerateBlock, prompt: Prompt, sample: int, answer: Answer) -> Iterator[Draft]:
        """Yield the rows that one answer gives: none where it is not what was asked for."""
        ...


def prompts_of_file(block: GenerateBlock, instruction: str = "") -> Iterator[Prompt]:
    """Yield the prompts of the block's file, with its system message.

    Args:
        block: The block; ``prompts`` is given.
        instruction: For the teacher alone, unless the block has another.
    """
    assert block.prompts is not None
    if block.instruction is not None:
        instruction = block.instruction
    for prompt in read_prompts(block.prompts.path):
        yield addressed(prompt, block, block.system, instruction)


def addressed(prompt: Prompt, block: GenerateBlock, system: str | None, instruction: str) -> Prompt:
    """Return a prompt with a system message, for the student too if the block says so."""
    return replace(
        prompt,
        asked=with_instruction(with_system(prompt.asked, system), instruction),
        shown=with_system(prompt.shown, system) if block.keep_system and not prompt.plain else prompt.shown,
    )


def whole_answer(block: GenerateBlock, prompt: Prompt, sample: int, answer: Answer) -> Iterator[Draft]:
    """Yield the one row of an answer: the prompt, then the teacher's turn with its reasons apart."""
    reasoning, content = split(answer.text, answer.reasoning, block.answer_pattern)
    if not content:
        return
    plain = prompt.plain and len(prompt.shown) == 1
    # Without a template the space before an answer is part of it.
    turn = Message("assistant", answer.text if plain and reasoning is None else content, reasoning)
    conversation = Conversation((*prompt.shown, turn), plain)
    yield Draft(prompt, sample, 0, conversation, answer.completion_tokens)
