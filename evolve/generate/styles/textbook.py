"""Textbook-style texts and exercises (phi-1, Gunasekar et al. 2023, arXiv:2306.11644).

Diversity does not come from the temperature: every text is asked for with another topic, audience and form,
and with words that must occur in it (TinyStories, Eldan and Li 2023, arXiv:2305.07759).
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, ClassVar

from evolve.conversations import Conversation, Message
from evolve.generate import draws
from evolve.generate.checks import fixed
from evolve.generate.prompts import Prompt, name_of, read_lines, with_instruction, with_system
from evolve.generate.styles.base import Draft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.generate.blocks import GenerateBlock, TextbookBlock
    from evolve.generate.exchange import Answer

_TEXT = "Write {form} about {topic}, for {audience}. Be clear and correct, and explain every step."
_WORDS = " Use these words where they fit: {words}."
_EXERCISES = (
    "Write {count} different exercises about {topic}, for {audience}, each with a complete solution. Write "
    "every one as\nExercise: ...\nSolution: ...\nand nothing else."
)
_PAIR = re.compile(
    r"^[^\w\n]*Exercise\b[^:\n]*:(?P<exercise>.+?)^[^\w\n]*Solution\b[^:\n]*:(?P<solution>.+?)"
    r"(?=^[^\w\n]*Exercise\b[^:\n]*:|\Z)",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_MARKUP = " \t\n*#"


class Textbook:
    """See the text of the module."""

    keys: ClassVar[frozenset[str]] = frozenset({"textbook", "instruction"})
    needs: ClassVar[frozenset[str]] = frozenset({"textbook"})

    @staticmethod
    def prompts(block: GenerateBlock) -> Iterator[Prompt]:
        """Yield for each topic its texts, then its exercises."""
        book = block.textbook
        assert book is not None
        words = read_lines(book.words.path) if book.words is not None else []
        pairs = list(itertools.product(book.audiences, book.forms))
        for topic in dict.fromkeys(read_lines(book.topics.path)):
            drawn = draws.some(pairs, fixed(book.texts_per_topic), block.seed, "texts", topic)
            for audience, form in drawn:
                yield _text(block, book, words, topic, audience, form)
            count = fixed(book.exercises)
            if count:
                audience = draws.one(book.audiences, block.seed, "exercises", topic)
                asked = _EXERCISES.format(count=count, topic=topic, audience=audience)
                yield _prompt(block, asked, topic=topic, audience=audience, form="exercises")

    @staticmethod
    def rows(block: GenerateBlock, prompt: Prompt, sample: int, answer: Answer) -> Iterator[Draft]:
        """Yield the text as it is, or a conversation for each exercise that has a solution."""
        text = answer.text.strip()
        if prompt.about["form"] != "exercises":
            conversation = Conversation((Message("assistant", text),), plain=True)
            yield Draft(prompt, sample, 0, conversation, answer.completion_tokens)
            return
        for part, found in enumerate(_PAIR.finditer(text)):
            exercise, solution = found["exercise"].strip(_MARKUP), found["solution"].strip(_MARKUP)
            if not exercise or not solution:
                continue
            share = len(exercise + solution) / max(len(text), 1)
            turns = (Message("user", exercise), Message("assistant", solution))
            yield Draft(prompt, sample, part, Conversation(turns), round(share * answer.completion_tokens))


def _text(
    block: GenerateBlock, book: TextbookBlock, words: list[str], topic: str, audience: str, form: str
) -> Prompt:
    asked = _TEXT.format(form=form, topic=topic, audience=audience)
    count = fixed(book.words_per_text)
    drawn = draws.some(words, count, block.seed, "words", topic, audience, form) if words and count else []
    if drawn:
        asked += _WORDS.format(words=", ".join(drawn))
    return _prompt(block, asked, topic=topic, audience=audience, form=form)


def _prompt(block: GenerateBlock, asked: str, **about: str) -> Prompt:
    turns = with_instruction((Message("user", asked),), block.instruction or "")
    turns = with_system(turns, block.system)
    return Prompt(name_of(asked), turns, (), about=about)
