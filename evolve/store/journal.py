"""The file behind Optuna's journal storage: one JSON record a line, only ever appended.

Optuna's own file backend takes a lock that outlives a killed process (30 seconds to get past it), appends to
a record that was cut off, and waits for the disk at each of the hundreds of records of a trial.
This one has the same two methods and the same format.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from evolve.errors import RunError
from evolve.store.atomic import explained, make_folder, sync_folder, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_SET_TRIAL_PARAM, _SET_TRIAL_SYSTEM_ATTR = 5, 9
# A power cut that takes an ask's records takes its end, and a lost ask is asked again, identically.
_NOT_WAITED_FOR = {_SET_TRIAL_PARAM, _SET_TRIAL_SYSTEM_ATTR}

_CHUNK = 1 << 16


class JournalFile:
    """A journal backend of Optuna over one file. Safe for one writer and any number of readers.

    Args:
        path: Absolute path of the file.
        readonly: Refuse to write, and skip the optimizer's state, which is most of the file.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self._path = path
        self._readonly = readonly
        self._position = (0, 0, 0)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the records from a number on; a record that is being written is left for the next call.

        Raises:
            RunError: A record that is not the last is damaged.
        """
        number, offset, line_number = self._position
        if log_number_from < number:
            number, offset, line_number = 0, 0, 0
        with explained(self._path, "read"), self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset, line_number = offset + len(line), line_number + 1
                if self._readonly and _is_optimizer_state(line):
                    continue
                record = _parse(line)
                if record is None:
                    raise RunError(self.damage("is damaged", line_number))
                number += 1
                # Before the yield: Optuna counts a record as read before it applies it, and may raise then.
                self._position = (number, offset, line_number)
                if number > log_number_from:
                    yield record

    def damage(self, what: str, line_number: int | None = None) -> str:
        """Return the message about a line, the one that was read last if none is given."""
        return (
            f"{self._path}: line {line_number or self._position[2]} {what}, and there are records behind it. "
            f"Restore the file from a backup, or move it away (mv '{self._path}' '{self._path}.damaged') and "
            "run the same command again: the search proposes the same candidates, and those that were "
            "scored are not scored again."
        )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, whole or not at all.

        Raises:
            RunError: The disk is full or cannot be written.
        """
        if self._readonly:
            raise RunError(f"{self._path}: opened for reading, and something wants to write. Please report.")
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with _locked(self._path) as descriptor:
            _cut_torn_tail(descriptor, self._path)
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
                if any(log.get("op_code") not in _NOT_WAITED_FOR for log in logs):
                    os.fsync(descriptor)
            except BaseException:
                # A part of a record, with the next one behind it, would be damage in the middle.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise


def open_journal(path: Path) -> JournalFile:
    """Open a journal for writing; make it if it is not there, cut off a last record that is not whole.

    Call it under the run's lock.
    """
    make_folder(path.parent)
    with explained(path):
        new = not path.exists()
        with _locked(path, create=True) as descriptor:
            _cut_torn_tail(descriptor, path)
            _cut_unreadable_end(descriptor, path)
        if new:
            sync_folder(path.parent)
    return JournalFile(path)


@contextlib.contextmanager
def _locked(path: Path, *, create: bool = False) -> Iterator[int]:
    """Open the file and lock it for the block, so that no record is cut while it is written."""
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            # Explicitly, since a child that was forked meanwhile shares the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _cut_torn_tail(descriptor: int, path: Path) -> None:
    """Cut off bytes behind the last newline: a record whose writer was killed."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        _cut(descriptor, path, _line_start(descriptor, size))


def _cut_unreadable_end(descriptor: int, path: Path) -> None:
    """Cut off a last line that ends in a newline and is no record, as a power cut may leave it."""
    size = os.fstat(descriptor).st_size
    if not size:
        return
    start = _line_start(descriptor, size - 1)
    if _parse(os.pread(descriptor, size - start, start)) is None:
        _cut(descriptor, path, start)


def _line_start(descriptor: int, end: int) -> int:
    """Return the offset behind the last newline before ``end``."""
    while end > 0:
        begin = max(0, end - _CHUNK)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _cut(descriptor: int, path: Path, start: int) -> None:
    size = os.fstat(descriptor).st_size
    number = 1
    while (kept := path.with_name(f"journal.torn-{number}")).exists():
        number += 1
    write_bytes(kept, os.pread(descriptor, size - start, start))
    os.ftruncate(descriptor, start)
    os.fsync(descriptor)
    logger.warning(
        "%s: the last record was not whole; its %d bytes are now in %s", path, size - start, kept.name
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def _is_optimizer_state(line: bytes) -> bool:
    return line.startswith(b'{"op_code":9,') and b":optimizer:" in line[:256]
