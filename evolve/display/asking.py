"""Progress of generation: redrawn in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from evolve.display.watch import Mode
    from evolve.generate.progress import Show, Status

_LINE_EVERY = 10.0
_DRAW_EVERY = 0.1

_PHASES = {
    "asking": "asking the teacher",
    "judging": "asking the judge",
    "verifying": "verifying answers",
    "filtering": "filtering rows",
    "writing": "writing rows",
    "done": "done",
}


@contextlib.contextmanager
def showing(mode: Mode = "auto", console: Console | None = None) -> Iterator[Show | None]:
    """Yield a function that shows a status on stderr, or None for no display.

    Args:
        mode: ``rich`` redraws in place, ``plain`` writes lines, ``none`` shows nothing, ``auto`` is rich on a
            terminal and plain elsewhere.
        console: Where ``rich`` draws.
    """
    if mode == "none":
        yield None
    elif mode == "rich" or (mode == "auto" and sys.stderr.isatty()):
        with _drawing(console) as show:
            yield show
    else:
        yield _Lines().show


@contextlib.contextmanager
def _drawing(console: Console | None) -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live

    console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        drawn: tuple[float, str] = (-_DRAW_EVERY, "")

        def show(status: Status) -> None:
            nonlocal drawn
            at, phase = drawn
            now = time.monotonic()
            if status.phase != phase or status.done == status.total or now - at >= _DRAW_EVERY:
                live.update(picture(status), refresh=True)
                drawn = (now, status.phase)

        yield show


def picture(status: Status) -> RenderableType:
    """Return the lines that show a status."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    title = Text(_title(status), "bold")
    bar = ProgressBar(total=max(status.total, 1), completed=status.done, width=50)
    return Group(title, bar, Text("  ".join(facts(status)), "dim"))


def facts(status: Status) -> list[str]:
    """Return what a person wants to know of a status, each in a few words."""
    found = [f"{status.done:,} of {status.total:,}"] if status.total else []
    if status.known:
        found.append(f"{status.known:,} kept from before")
    found.append(f"{status.tokens:,}{_of(status.tokens_limit)} tokens")
    if status.usd or status.usd_limit is not None:
        limit = "" if status.usd_limit is None else f" of {status.usd_limit:.2f}"
        found.append(f"${status.usd:.2f}{limit}")
    if status.per_second is not None:
        found.append(f"{status.per_second:.0f} tokens/s")
    if status.flawed:
        found.append(f"{status.flawed:,} refused or cut off")
    if status.failed:
        found.append(f"{status.failed:,} failed")
    return found


def _title(status: Status) -> str:
    waits = ": stopping, waiting for what was asked (Ctrl-C again: do not wait)" if status.stopping else ""
    return _PHASES[status.phase] + waits


def _of(limit: int | None) -> str:
    return "" if limit is None else f" of {limit:,}"


class _Lines:
    """A line where the phase changes, and every ten seconds within one."""

    def __init__(self) -> None:
        self._last: tuple[str, bool] | None = None
        self._at = 0.0

    def show(self, status: Status) -> None:
        """Write a line if it is time for one."""
        now, news = time.monotonic(), (status.phase, status.stopping)
        ended = status.phase in {"asking", "judging"} and status.done == status.total
        if news == self._last and not ended and now - self._at < _LINE_EVERY:
            return
        click.echo(f"{_title(status)}: {', '.join(facts(status))}", err=True)
        self._last, self._at = news, now
