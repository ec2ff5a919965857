"""Writing files so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from typing import TYPE_CHECKING

from evolve.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TEMPORARY = re.compile(r"^\..+\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")

_MENDS = {
    errno.ENOSPC: "Free some space and run the same command again: nothing that was finished is lost.",
    errno.EDQUOT: "Your quota is used up: free some and run the same command again; nothing is lost.",
    errno.EROFS: "The file system is read-only: choose another folder with --runs.",
    errno.EACCES: "Allow yourself to write there, or choose another folder with --runs.",
    errno.EPERM: "Allow yourself to write there, or choose another folder with --runs.",
    errno.ENOTDIR: "A part of this path is a file: choose another folder with --runs.",
}


@contextlib.contextmanager
def explained(path: Path, what: str = "written") -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``RunError`` that names the file and the mend.

    Args:
        path: The file or folder that is worked on.
        what: ``written`` or ``read``.
    """
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "Mend that and run the same command again.")
        raise RunError(f"{path}: cannot be {what}: {error.strerror or error}. {mend}") from error


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the content of a file at once.

    Args:
        path: The file; its folder exists.
        data: The new content.
        durable: Wait until it is on the disk, so that it survives a power cut too.

    Raises:
        RunError: The disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with explained(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of a file at once by UTF-8 text. As :func:`write_bytes`."""
    # A captured log may hold bytes that are no text; in JSON their escape reads back as what it was.
    write_bytes(path, text.encode(errors="backslashreplace"), durable=durable)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that they survive a power cut."""
    if path.is_dir():
        return
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that a killed :func:`write_bytes` leaves."""
    return _TEMPORARY.match(name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder; the files of living ones stay.

    Call it under the run's lock.
    """
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        match = _TEMPORARY.match(file.name)
        if match and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
