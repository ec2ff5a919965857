"""Memory for results, used again: fresh pages from the system cost as much as the whole merge."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Buffers:
    """Hands out uninitialised tensors whose memory comes back when they die. Safe from many threads."""

    def __init__(self, limit: int = 1 << 28) -> None:
        """Keep at most ``limit`` bytes that nobody uses."""
        self._limit = limit
        self._free: dict[int, list[Bytes]] = {}
        self._lock = threading.Lock()
        self.nbytes = 0

    def empty(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a contiguous CPU tensor."""
        size = dtype.itemsize * torch.Size(shape).numel()
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        memory = self._take(size)
        if memory is None:
            memory = np.empty(size, np.uint8)
        # The tensor and all its views keep this array alive, and nothing else does.
        array = memory.view()
        weakref.finalize(array, self._give, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    def _take(self, size: int) -> Bytes | None:
        with self._lock:
            found = self._free.get(size)
            if not found:
                return None
            self.nbytes -= size
            return found.pop()

    def _give(self, memory: Bytes) -> None:
        with self._lock:
            if self.nbytes + memory.size <= self._limit:
                self._free.setdefault(memory.size, []).append(memory)
                self.nbytes += memory.size
