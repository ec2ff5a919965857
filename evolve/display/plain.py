"""Progress as plain lines, for logs, pipes and jobs: one line a change, never a flood."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from evolve.display.progress import Progress

_NEWS_EVERY = 10.0
"""Fewest seconds between two lines within a phase."""
_LIFE_EVERY = 120.0
"""Seconds after which a line comes when only counts have changed."""


class Plain:
    """Writes a line to stderr when something has changed that a person wants to know."""

    def __init__(self) -> None:
        self._last: Progress | None = None
        self._at = -_LIFE_EVERY

    def draw(self, progress: Progress) -> None:
        """Write a line if it is time for one."""
        last, now = self._last, time.monotonic()
        if last is None or progress.phase != last.phase or progress.reason != last.reason:
            due = True
        elif _news(progress) != _news(last):
            due = now - self._at >= _NEWS_EVERY
        else:
            due = progress.evaluated != last.evaluated and now - self._at >= _LIFE_EVERY
        if due:
            self._write(progress, now)

    def close(self, progress: Progress | None) -> None:
        """Write the last line, unless it has been written."""
        if progress is not None and (self._last is None or _news(progress) != _news(self._last)):
            self._write(progress, time.monotonic())

    def _write(self, progress: Progress, now: float) -> None:
        click.echo(progress.line(), err=True)
        self._last, self._at = progress, now


def _news(progress: Progress) -> tuple[object, ...]:
    return progress.phase, progress.generation, progress.best, sum(progress.failed.values()), progress.reason
