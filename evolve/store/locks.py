"""Locks that die with their holder: ``flock`` on an open file, with the holder's name inside."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from evolve.errors import RunError
from evolve.store.atomic import explained

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL_SECONDS = 0.1

_held: set[int] = set()


def _forget_in_child() -> None:
    # A forked child shares the lock with its parent and would hold it after the parent's death.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def hold(path: Path, command: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file for the block. A lock of a dead process is free, without any waiting.

    Args:
        path: The lock file; it stays, empty, after the release.
        command: What the holder does, for the message to the others.
        wait: Seconds to wait for the present holder.

    Raises:
        RunError: Another process, or this one already, holds the lock. Names the holder.
    """
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        with explained(path):
            if not _acquire(descriptor, time.monotonic() + wait):
                raise RunError(_busy(path))
            _name_holder(descriptor, command)
        try:
            yield
        finally:
            if descriptor in _held:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, 0)
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def holder(path: Path) -> dict[str, Any]:
    """Return what the last holder wrote into a lock file; empty when nobody did."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _acquire(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _name_holder(descriptor: int, command: str) -> None:
    text = json.dumps(
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _busy(path: Path) -> str:
    found = holder(path)
    if not found:
        return f"{path}: another process works on this run. Wait for it, or stop it."
    return (
        f"{path}: this run is in use by pid {found.get('pid')} on {found.get('host')} "
        f"({found.get('command')}, since {found.get('started')}). Wait for it, or stop it."
    )
