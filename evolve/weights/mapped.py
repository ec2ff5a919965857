"""Tensors out of safetensors files, as views of memory maps that all threads share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from evolve.weights.header import Header


class MappedTensors:
    """Maps each file on the first read from it. Safe to call from any number of threads.

    Pages that were read belong to the file: the system takes them back when memory is short.
    """

    def __init__(self, where: Mapping[str, Header]) -> None:
        """Take the header of the file that holds each tensor."""
        self._where = where
        self._maps: dict[Path, Any] = {}
        self._tensors: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Tensor:
        """Return one tensor; nobody may write to it."""
        header = self._where[name]
        with self._lock:
            if name not in self._tensors:
                if header.path not in self._maps:
                    self._maps[header.path] = _map(header)
                # A view of the mapped file: it costs an object, no memory.
                self._tensors[name] = self._maps[header.path].get_tensor(name)
            return self._tensors[name]


def _map(header: Header) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        stat = header.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (header.size, header.mtime_ns):
            raise ModelError(
                f"{header.path} changed after it was opened: start again, and leave it alone meanwhile"
            )
        return safe_open(header.path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{header.path} cannot be mapped: {error}") from error
