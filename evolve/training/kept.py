"""What is worked out once and kept on the disk: losses of documents, texts that a model wrote."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from evolve.errors import UserError
from evolve.types import content_hash
from evolve.weights.files import cache_folder
from evolve.weights.locked import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_VERSION = 1
"""Changes with what is kept: files of another version are not used."""


def kept(kind: str, key: Mapping[str, Any], suffix: str, write: Callable[[Path], None]) -> Path:
    """Return the file that is kept under a key, made now where it is not there.

    Whoever comes first makes it, others wait, in other processes too. A file is whole or absent.

    Args:
        kind: Folder inside the cache.
        key: Everything that decides the content, as plain data.
        suffix: Of the file's name.
        write: Makes the file at a path that is not taken.

    Raises:
        UserError: The cache cannot be written.
    """
    try:
        folder = cache_folder("training") / kind
    except RuntimeError as error:
        raise UserError(f"no folder for what training keeps: {error}; set XDG_CACHE_HOME") from error
    path = folder / f"{content_hash({'version': _VERSION, 'kind': kind, **key})}{suffix}"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            for stale in folder.glob(f".{path.name}.*"):
                stale.unlink(missing_ok=True)
            if not path.exists():
                partial = path.with_name(f".{path.name}.{os.getpid()}")
                try:
                    write(partial)
                    with partial.open("rb+") as file:
                        os.fsync(file.fileno())
                    partial.rename(path)
                finally:
                    partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}. Free some space or make it writable, or "
            "set XDG_CACHE_HOME to another folder"
        ) from error
    return path
