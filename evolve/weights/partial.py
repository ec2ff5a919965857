"""Folders that appear complete or not at all: written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.weights.files import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_SUFFIX = ".partial"
_REPLACED = ".replaced"
_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")
_PUT_AWAY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.replaced")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Yield a locked hidden folder beside ``out``; remove it unless it was renamed.

    What killed writers left in the same folder, for whatever target, is removed first; a model that one had
    put away to replace it gets its name back, so ``out`` may be there although it was not.
    """
    # A lock on the parent, so that nobody takes the new folder for a stale one before it is locked itself.
    with _locked(out.parent):
        _remove_stale(out.parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_SUFFIX, dir=out.parent))
        descriptor = os.open(folder, os.O_RDONLY)
        # Held while writing: this is how _remove_stale tells a killed writer from a busy one.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)
        yield folder
    finally:
        _remove(folder)
        os.close(descriptor)


def move_in(folder: Path, out: Path, *, replace: bool = False) -> None:
    """Rename a finished folder to ``out``, so that it stays after a power cut.

    Args:
        folder: What :func:`partial_folder` gave.
        out: Absent, or an empty folder, unless ``replace``.
        replace: Put it in the place of the folder ``out``, which is removed. Where the system can exchange
            two names, ``out`` is a complete folder at any instant. Elsewhere a process that is killed between
            two renames leaves the old one under a hidden name, and the next writer gives it its name back.
    """
    if not replace:
        folder.rename(out)
    elif not _exchange(folder, out):
        _replace_by_two(folder, out)
    sync_folder(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; return False where the system cannot.

    What :func:`partial_folder` removes at its end is then the old folder.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _replace_by_two(folder: Path, out: Path) -> None:
    old = folder.with_suffix(_REPLACED)
    # The lock to the end: without it another writer takes the old folder for one that a killed writer left.
    with _locked(out.parent):
        try:
            out.rename(old)
            folder.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        sync_folder(out.parent)
        _remove(old)


def write_text(path: Path, text: str) -> None:
    """Write a text file to the disk itself."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and every file below it are on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_folder(path)
    sync_folder(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(parent: Path) -> None:
    for folder in list(parent.iterdir()):
        with contextlib.suppress(OSError):
            if away := _PUT_AWAY.fullmatch(folder.name):
                _put_back(folder, parent / away.group(1))
            elif _LEFTOVER.fullmatch(folder.name):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder)
                finally:
                    os.close(descriptor)


def _put_back(old: Path, out: Path) -> None:
    """Give a folder its name back, unless the new one has it, or the old one was being removed."""
    if not out.exists() and (old / CONFIG).is_file():
        old.rename(out)
        logger.warning("%s is there again: the writer that was to replace it was killed", out)
    else:
        _remove(old)


def _remove(folder: Path) -> None:
    # First, so that what is left by a kill does not look complete.
    with contextlib.suppress(OSError):
        (folder / CONFIG).unlink()
    shutil.rmtree(folder, ignore_errors=True)
