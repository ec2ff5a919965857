"""Tells the reasons in an answer from the answer itself."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPEN, _CLOSE = "<think>", "</think>"
_MARKER = re.compile(
    r"(?:####|(?:\*\*)?\b(?:the\s+)?(?:final\s+)?answer(?:\s+is)?(?:\*\*)?\s*[:\uff1a])(?:\s*\*\*)?",
    re.IGNORECASE,
)
_BOXED = "\\boxed{"


class Parts(NamedTuple):
    """An answer in two parts.

    Attributes:
        reasoning: The reasons, or None where none can be told from the answer.
        answer: The rest.
    """

    reasoning: str | None
    answer: str


def split(text: str, reasoning: str | None = None, pattern: str | None = None) -> Parts:
    """Return the parts of an answer.

    Args:
        text: What the model wrote.
        reasoning: Its thoughts, where the server gives them apart.
        pattern: With the groups ``reasoning`` and ``answer``; None: ``<think>`` tags, then ``Answer:`` or
            ``####``. A template may open the tag in the prompt, so only the closing one is needed.
    """
    text = text.strip()
    if reasoning is not None and reasoning.strip():
        return Parts(reasoning.strip(), text)
    if pattern is not None:
        found = re.search(pattern, text, re.DOTALL)
        if found is None:
            return Parts(None, text)
        return Parts((found["reasoning"] or "").strip() or None, (found["answer"] or "").strip())
    if _CLOSE in text:
        before, _, after = text.rpartition(_CLOSE)
        return Parts(before.replace(_OPEN, "", 1).strip() or None, after.strip())
    before, after = _around_marker(text)
    return Parts(before, after) if before and after else Parts(None, text)


def final_answer(text: str) -> str:
    """Return what an answer, or a reference, comes to: its last box, what stands behind a marker, or all."""
    boxed = _last_box(text)
    if boxed is not None:
        return boxed
    answer = split(text).answer
    return _around_marker(answer)[1] or answer


def _around_marker(text: str) -> tuple[str, str]:
    """Return what stands before the last marker and behind it: reasons may speak of an answer before."""
    found = list(_MARKER.finditer(text))
    return (text[: found[-1].start()].strip(), text[found[-1].end() :].strip()) if found else ("", "")


def _last_box(text: str) -> str | None:
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOXED)
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return None
