"""What generation is doing, as a value that any display can draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["asking", "judging", "verifying", "filtering", "writing", "done"]


@dataclass(frozen=True)
class Status:
    """One look at it.

    Attributes:
        phase: What is being done.
        done: Requests of this phase that are settled: answered, given up, or asked often enough.
        total: Requests of this phase.
        known: How many of them were in the store already.
        flawed: Answers of this call that were none: refused, cut off, empty.
        failed: Requests of this call that the server failed on.
        tokens: Tokens of all answers in the store, prompts included.
        usd: Their price.
        tokens_limit: The budget, or None.
        usd_limit: The budget, or None.
        written: Tokens that were written in this call.
        seconds: Since the call began.
        stopping: Only what has been asked is waited for.
    """

    phase: Phase
    done: int = 0
    total: int = 0
    known: int = 0
    flawed: int = 0
    failed: int = 0
    tokens: int = 0
    usd: float = 0.0
    tokens_limit: int | None = None
    usd_limit: float | None = None
    written: int = 0
    seconds: float = 0.0
    stopping: bool = False

    @property
    def per_second(self) -> float | None:
        """Tokens written a second, or None while nothing was."""
        return self.written / self.seconds if self.written and self.seconds > 0 else None


Show: TypeAlias = Callable[[Status], None]
"""Draws a status, or leaves it where nothing is new."""
