"""Conversations: training data in any of the usual JSONL formats, read into one value, and written back.

======================  ==========================================================================
messages                ``{"messages": [{"role": "user", "content": ...}, ...]}``
ShareGPT                ``{"conversations": [{"from": "human", "value": ...}, ...]}``
prompt and completion   ``{"prompt": ..., "completion": ...}``: two texts, or two lists of messages
question and answer     ``{"question": ..., "answer": ...}``
Alpaca                  ``{"instruction": ..., "input": ..., "output": ...}``
plain text              ``{"text": ...}``
======================  ==========================================================================

A line that has the keys of several is read as the first of them. What else it holds is kept in ``rest``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from evolve.errors import UserError, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks.
        content: What is said.
        reasoning: What an assistant thought before, or None.
    """

    role: Role
    content: str
    reasoning: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return the turn as the messages format has it; reasoning under ``reasoning_content``."""
        found = {"role": str(self.role), "content": self.content}
        return found if self.reasoning is None else {**found, "reasoning_content": self.reasoning}


@dataclass(frozen=True)
class Conversation:
    """Turns in their order.

    Attributes:
        messages: At least one.
        plain: The texts follow each other as they are, without a chat template: a prompt and its answer, or
            one turn of the assistant's, which is a text.
        rest: The other keys of the line.
        place: ``file:line``, for messages to people.
    """

    messages: tuple[Message, ...]
    plain: bool = False
    rest: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    place: str = field(default="", compare=False)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the assistant's last one; all of them where the last is not the assistant's."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    def to_json(self) -> dict[str, Any]:
        """Return the line that :func:`read_conversations` reads back as this conversation."""
        if not self.plain:
            return {"messages": [message.to_json() for message in self.messages], **self.rest}
        if len(self.messages) == 1 and self.messages[0].role == "assistant":
            return {"text": self.messages[0].content, **self.rest}
        found = dict(zip(("prompt", "completion"), [one.content for one in self.messages], strict=False))
        thoughts = self.messages[-1].reasoning
        return {**found, **({} if thoughts is None else {"reasoning_content": thoughts}), **self.rest}


def read_conversations(path: Path | str, *, answered: bool = True) -> Iterator[Conversation]:
    """Yield the conversations of a JSONL file in their order. Empty lines are left out.

    Args:
        path: The file, UTF-8.
        answered: Whether each must end with a turn of the assistant's, as training data does and a prompt
            does not.

    Raises:
        UserError: The file cannot be read, or a line is none of the formats. Names file, line and mend.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield _conversation(line, f"{path}:{number}", answered)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def said(row: Any) -> str:
    """Return all that is said and thought in one JSON value of any of the formats, as one text.

    Stages that read plain text take its ``text``, whatever format the rest of it is, so that is in it, too.

    Raises:
        ValueError: It is none of the formats.
    """
    plain = row.get("text") if isinstance(row, dict) else None
    parts: list[str | None] = [plain] if isinstance(plain, str) else []
    try:
        messages, _, used = _messages(row)
    except _Wrong as error:
        if not parts:
            raise ValueError(str(error)) from error
    else:
        if "text" not in used:
            parts += [part for one in messages for part in (one.reasoning, one.content)]
    return "\n".join(part for part in parts if part)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> str:
    """Write conversations, one a line, and return ``sha256:...`` of the file.

    The file appears when it is whole and on the disk; one of the same name is replaced at once.

    Raises:
        UserError: It cannot be written.
    """
    total = hashlib.sha256()
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as stream:
            for conversation in conversations:
                line = json.dumps(conversation.to_json(), ensure_ascii=False, allow_nan=False).encode()
                total.update(line + b"\n")
                stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Mend that and run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return f"sha256:{total.hexdigest()}"


class _Wrong(Exception):
    """A line is not what it should be; becomes a UserError with the place."""


def _conversation(line: bytes, place: str, answered: bool) -> Conversation:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        if b"\\u" in line:
            _whole(json.dumps(row, ensure_ascii=False))
        messages, plain, used = _messages(row)
        if answered and messages[-1].role != "assistant":
            raise _Wrong("it ends without an answer of the assistant's: add one, or leave the line out")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        if line.strip() == b"[" or line.lstrip().startswith(b"[{"):
            raise UserError(f"{place}: {_ONE_A_LINE}") from error
        raise UserError(f"{place}: not JSON ({error.msg}, column {error.colno}): {_ONE_A_LINE}") from error
    except (_Wrong, RecursionError) as error:
        raise UserError(f"{place}: {error}") from error
    rest = {key: value for key, value in row.items() if key not in used}
    return Conversation(messages, plain, rest, place)


_ONE_A_LINE = "write one JSON object a line, as `jq -c '.[]' list.json > lines.jsonl` does from a list"


def _no_constant(name: str) -> NoReturn:
    raise _Wrong(f"{name} is no JSON: write null or a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Wrong(f"{text} is larger than any number of JSON that can be written back")
    return value


def _whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Wrong(f"half of a character (\\u{ord(text[error.start]):04x}): write the character") from error


Read: TypeAlias = "tuple[tuple[Message, ...], bool, tuple[str, ...]]"
"""The turns, whether they are plain, and the keys that they come from."""


def _messages(row: Any) -> Read:
    if not isinstance(row, dict):
        raise _Wrong(f"expected a JSON object, got {_kind(row)}: {_ONE_A_LINE}")
    for key, read in _FORMATS.items():
        if key in row:
            return read(row)
    known = ", ".join(_FORMATS)
    raise _Wrong(f"none of the keys {known}; it has {some(row, 5) or 'none'}: rename one of them")


def _of_messages(row: dict[str, Any]) -> Read:
    return _turns(row["messages"], "messages"), False, ("messages",)


def _of_sharegpt(row: dict[str, Any]) -> Read:
    turns = _turns(row["conversations"], "conversations")
    system = row.get("system")
    if isinstance(system, str) and system and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    return turns, False, ("conversations", "system")


def _of_prompt(row: dict[str, Any]) -> Read:
    if "chosen" in row or "rejected" in row:
        raise _Wrong("a pair of preference: rename chosen to completion to learn from it as an answer")
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(prompt, str):
        if completion is None:
            return (Message("user", prompt),), True, ("prompt", "completion")
        thoughts = row.get("reasoning_content")
        thoughts = thoughts if isinstance(thoughts, str) and thoughts else None
        answer = Message("assistant", _text(completion, "completion"), thoughts)
        return (Message("user", prompt), answer), True, ("prompt", "completion", "reasoning_content")
    turns = _turns(prompt, "prompt")
    if isinstance(completion, str):
        turns += (Message("assistant", completion),)
    elif completion is not None:
        turns += _turns(completion, "completion")
    return turns, False, ("prompt", "completion")


def _of_question(row: dict[str, Any]) -> Read:
    turns = (Message("user", _text(row["question"], "question")),)
    # A number is a reference for a verifier, and stays one.
    if isinstance(row.get("answer"), str):
        return (*turns, Message("assistant", row["answer"])), False, ("question", "answer")
    return turns, False, ("question",)


def _of_alpaca(row: dict[str, Any]) -> Read:
    parts = [_text(row["instruction"], "instruction"), _text(row.get("input") or "", "input")]
    turns: tuple[Message, ...] = (Message("user", "\n\n".join(part for part in parts if part)),)
    if isinstance(row.get("system"), str) and row["system"]:
        turns = (Message("system", row["system"]), *turns)
    if row.get("output") is not None:
        turns += (Message("assistant", _text(row["output"], "output")),)
    return turns, False, ("instruction", "input", "output", "system")


def _of_text(row: dict[str, Any]) -> Read:
    return (Message("assistant", _text(row["text"], "text")),), True, ("text",)


_FORMATS: dict[str, Callable[[dict[str, Any]], Read]] = {
    "messages": _of_messages,
    "conversations": _of_sharegpt,
    "prompt": _of_prompt,
    "question": _of_question,
    "instruction": _of_alpaca,
    "text": _of_text,
}


def _turns(value: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f"{key} must be a list of turns, not {_kind(value)}")
    return tuple(_turn(turn, f"{key}[{index}]") for index, turn in enumerate(value))


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise _Wrong(f"{where} must be a turn with role and content, not {_kind(turn)}")
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise _Wrong(f"{where} has the role {name!r}: use system, user, assistant or tool")
    if turn.get("tool_calls"):
        raise _Wrong(f"{where} calls tools, which cannot be trained on: leave the line out")
    content = _text(turn.get("content", turn.get("value")), f"{where}.content")
    thoughts = [turn[key] for key in _REASONING if isinstance(turn.get(key), str) and turn[key]]
    return Message(role, content, thoughts[0] if thoughts and role == "assistant" else None)


def _text(value: Any, where: str) -> str:
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise _Wrong(f"{where} must be text, not {_kind(value)}")
    return value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", dict: "an object"}
    return names.get(type(value), type(value).__name__)
