"""Shows a run's progress beside the run, from its folder alone.

The display cannot break a run: it runs in a thread, takes no lock, and its errors end here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from evolve.display.progress import Progress, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.store.rundir import RunDir

logger = logging.getLogger(__name__)

Mode: TypeAlias = Literal["auto", "rich", "plain", "none"]
MODES: tuple[Mode, ...] = ("auto", "rich", "plain", "none")


class Painter(Protocol):
    """One way to draw progress."""

    def draw(self, progress: Progress) -> None:
        """Draw it, or leave it when nothing is new."""
        ...

    def close(self, progress: Progress | None) -> None:
        """Draw the last look and give everything back."""
        ...


@contextlib.contextmanager
def watch(run: RunDir, mode: Mode = "auto", *, every: float = 0.5) -> Iterator[None]:
    """Show the progress of ``run`` until the block is left.

    Args:
        run: The run; only read.
        mode: ``rich`` redraws in place, ``plain`` writes lines, ``none`` shows nothing, ``auto`` is rich on
            a terminal and plain elsewhere.
        every: Seconds between two looks.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_loop, args=(run, mode, every, stop), name="evolve-display", daemon=True)
    if mode != "none":
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join(timeout=5)


def _loop(run: RunDir, mode: Mode, every: float, stop: threading.Event) -> None:
    faults: set[str] = set()
    painter: Painter | None = None
    last: Progress | None = None
    with _harmless(faults):
        painter = _painter(mode)
    reader = Reader(run)
    while painter is not None:
        stopping = stop.wait(every)
        with _harmless(faults):
            last = reader.look()
            if not stopping:
                painter.draw(last)
        if stopping:
            with _harmless(faults):
                painter.close(last)
            return


@contextlib.contextmanager
def _harmless(faults: set[str]) -> Iterator[None]:
    """Log an error of the display, each kind once, and go on."""
    try:
        yield
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        if fault not in faults:
            faults.add(fault)
            logger.warning("the display failed (%s); the run goes on", fault, exc_info=True)


def _painter(mode: Mode) -> Painter:
    if mode == "rich" or (mode == "auto" and sys.stderr.isatty()):
        from evolve.display.live import Rich

        return Rich()
    from evolve.display.plain import Plain

    return Plain()
