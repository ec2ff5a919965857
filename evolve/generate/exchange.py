"""What is asked and what is answered, as values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from evolve.types import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.conversations import Message

Flaw: TypeAlias = Literal["refused", "content_filter", "truncated", "empty", "aborted"]
"""Why an answer is none."""

_VERSION = 1
"""Changes when the same key would mean another request."""
_TEMPLATE_TOKENS = 64
"""Room for what a chat template adds to a prompt, on top of eight tokens a turn."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: Share of the probability that tokens are drawn from.
        max_tokens: Most tokens of the answer.
        stop: Texts that end it.
        seed: Together with the request's key it decides the draw, where the server draws by seed.
    """

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    Attributes:
        model: The model's name. Where it is served is no part of the request.
        messages: The turns, the last one no assistant's.
        sampling: How the answer is drawn.
        endpoint: ``chat`` or ``completions``.
        extra: Further keys of the request.
        sample: Tells several answers to the same turns apart, from 0.
        place: ``file:line`` of the prompt, for messages to people.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    endpoint: str = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    sample: int = 0
    place: str = field(default="", compare=False)

    @cached_property
    def text(self) -> str:
        """Everything that decides the answer, as canonical JSON."""
        sampling = self.sampling
        # 1 and 1.0 are one temperature.
        return canonical_json(
            {
                "version": _VERSION,
                "model": self.model,
                "endpoint": self.endpoint,
                "messages": [message.to_json() for message in self.messages],
                "temperature": float(sampling.temperature),
                "top_p": float(sampling.top_p),
                "max_tokens": sampling.max_tokens,
                "stop": list(sampling.stop),
                "seed": sampling.seed,
                "extra": dict(self.extra),
                "sample": self.sample,
            }
        )

    @cached_property
    def key(self) -> str:
        """SHA-256 of the request: one answer is kept under it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def most_prompt_tokens(self) -> int:
        """More tokens than the prompt has: no tokenizer makes more of a text than it has bytes."""
        size = sum(len(message.content.encode()) for message in self.messages)
        return size + 8 * len(self.messages) + _TEMPLATE_TOKENS

    @property
    def likely_tokens(self) -> int:
        """An estimate of the tokens of prompt and answer, as servers make it for their limits."""
        size = sum(len(message.content.encode()) for message in self.messages)
        return math.ceil(size / 4) + self.sampling.max_tokens

    def seed(self, attempt: int) -> int:
        """Return the seed of an attempt: another after an answer that was none."""
        digest = hashlib.sha256(f"{self.key} {attempt}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        text: The answer.
        reasoning: What the model thought before, where the server gives it apart.
        finish_reason: ``stop``, ``length`` and so on, or empty where the server gives none.
        refusal: What the server says instead of an answer, or None.
        prompt_tokens: Tokens of the prompt, by the server's count.
        completion_tokens: Tokens of the answer and of the reasoning, by the server's count.
        model: What the server says that answered.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str = "stop"
    refusal: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""

    @property
    def flaw(self) -> Flaw | None:
        """Why this is no answer, or None."""
        if self.refusal:
            return "refused"
        if self.finish_reason == "content_filter":
            return "content_filter"
        if self.finish_reason in {"length", "max_tokens"}:
            return "truncated"
        if self.finish_reason in {"abort", "error", "tool_calls", "function_call"}:
            return "aborted"
        return None if self.text.strip() else "empty"


class Garbled(Exception):
    """A server's reply is not what the protocol says; asking again may help."""


def read_answer(data: Any, request: Request) -> Answer:
    """Return the answer in a server's reply.

    Raises:
        Garbled: It holds none.
    """
    if not isinstance(data, dict):
        raise Garbled("the reply is no JSON object")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        error = data.get("error")
        raise Garbled(f"the reply has no choices{f' but an error: {error}' if error else ''}"[:500])
    choice = choices[0]
    message = choice.get("message") if request.endpoint == "chat" else {"content": choice.get("text")}
    if not isinstance(message, dict):
        raise Garbled("the reply has no message")
    text = _content(message.get("content"))
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    refusal = message.get("refusal")
    return _counted(
        Answer(
            text=text,
            reasoning=_clean(thoughts) if isinstance(thoughts, str) and thoughts.strip() else None,
            finish_reason=str(choice.get("finish_reason") or ""),
            refusal=_clean(refusal) if isinstance(refusal, str) and refusal.strip() else None,
            model=str(data.get("model") or ""),
        ),
        data.get("usage"),
        request,
    )


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise Garbled("the reply's content is no text")
    return _clean(content)


def _clean(text: str) -> str:
    """Replace halves of characters, which a cut answer may end with and no file can hold."""
    return text.encode(errors="replace").decode()


def _counted(answer: Answer, usage: Any, request: Request) -> Answer:
    """Fill in the tokens; where the server counts none, a third of the bytes, rather too many."""
    counts = usage if isinstance(usage, dict) else {}
    found = [counts.get("prompt_tokens"), counts.get("completion_tokens")]
    written = answer.text + (answer.reasoning or "") + (answer.refusal or "")
    asked = sum(len(message.content.encode()) for message in request.messages)
    guesses = [math.ceil(asked / 3), math.ceil(len(written.encode()) / 3)]
    prompt, completion = (
        count if type(count) is int and count >= 0 else guess
        for count, guess in zip(found, guesses, strict=True)
    )
    return Answer(
        answer.text,
        answer.reasoning,
        answer.finish_reason,
        answer.refusal,
        prompt,
        completion,
        answer.model,
    )
