"""What the teacher is asked about: prompts of a file, each with a name and its line's other values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from evolve.conversations import Message, read_conversations
from evolve.errors import UserError
from evolve.types import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Prompt:
    """Something to ask.

    Attributes:
        name: Tells it from other prompts by what it asks, not by where it stands.
        asked: The turns that the teacher gets.
        shown: The turns that the row begins with; empty for a text of its own.
        plain: The row has no chat template.
        answer: What the prompt's line has for an answer, or None.
        row: The line's other keys, for verifiers.
        about: What is noted of it in the rows.
        place: ``file:line``.
    """

    name: str
    asked: tuple[Message, ...]
    shown: tuple[Message, ...]
    plain: bool = False
    answer: str | None = None
    row: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    about: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    place: str = ""


def name_of(*parts: Any) -> str:
    """Return 16 hex digits that plain data decide."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


def read_prompts(path: str) -> Iterator[Prompt]:
    """Yield the prompts of a JSONL file; teacher and student get the same turns.

    Raises:
        UserError: A line cannot be read, or has no prompt.
    """
    for conversation in read_conversations(path, answered=False):
        turns = conversation.prompt
        if not turns:
            raise UserError(
                f"{conversation.place}: a text without a prompt: give it as prompt, question or messages"
            )
        last = conversation.messages[-1]
        answered = last.role == "assistant"
        # The thoughts of earlier turns are no part of what is asked.
        turns = tuple(Message(turn.role, turn.content) for turn in turns)
        yield Prompt(
            name=name_of([turn.to_json() for turn in turns]),
            asked=turns,
            shown=turns,
            plain=conversation.plain,
            answer=last.content if answered else None,
            row=conversation.rest,
            place=conversation.place,
        )


def read_lines(path: str) -> list[str]:
    """Return the lines of a text file without empty ones, and without those that begin with ``#``.

    Raises:
        UserError: It cannot be read, or holds none.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: save the file as UTF-8") from error
    lines = [line.strip() for line in text.split("\n")]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path} has no lines: write one entry a line")
    return found


def item_texts(path: Path | str) -> Iterator[str]:
    """Yield what the items of a file say, for :func:`~evolve.generate.filters.ngram_overlap.banned_ngrams`.

    Raises:
        UserError: It cannot be read.
    """
    if Path(path).suffix.lower() not in {".jsonl", ".ndjson"}:
        yield from read_lines(str(path))
        return
    for conversation in read_conversations(path, answered=False):
        yield "\n".join(turn.content for turn in conversation.messages)


def with_system(turns: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """Return turns with a system message, unless they have one or there is none to add."""
    if not system or any(turn.role == "system" for turn in turns):
        return turns
    return (Message("system", system), *turns)


def with_instruction(turns: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    """Return turns with a text behind the last one."""
    if not instruction:
        return turns
    last = turns[-1]
    return (*turns[:-1], Message(last.role, f"{last.content}\n\n{instruction}"))
