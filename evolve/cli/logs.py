"""Where the log lines of evolve go: stderr, and the driver's log in a run's folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Stderr(logging.Handler):
    """Writes to what ``sys.stderr`` is now, which a live display may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except Exception:
            self.handleError(record)


def configure(*, verbose: int, quiet: bool) -> None:
    """Send the log of evolve to stderr: warnings, with -v also news, with -vv everything."""
    root = logging.getLogger("evolve")
    for handler in list(root.handlers):
        if isinstance(handler, _Stderr | logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
    level = logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    handler = _Stderr(level)
    handler.setFormatter(
        logging.Formatter("%(levelname)s: %(message)s" if level > logging.DEBUG else _FORMAT)
    )
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))


def attach(file: Path) -> None:
    """Also append the log to ``file``, once."""
    if str(file) in files():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.getLogger("evolve").addHandler(handler)


def files() -> list[str]:
    """The files that the log goes to."""
    handlers = logging.getLogger("evolve").handlers
    return [handler.baseFilename for handler in handlers if isinstance(handler, logging.FileHandler)]
