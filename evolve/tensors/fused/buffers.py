"""Memory for results, used again: fresh pages from the system cost as much as the whole merge."""

from __future__ import annotations

import threading
import weakref
from collections import deque
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
        self._returned: deque[Bytes] = deque()
        self._lock = threading.Lock()
        self._nbytes = 0

    def empty(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a contiguous CPU tensor."""
        size = dtype.itemsize * torch.Size(shape).numel()
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            self._sort()
            found = self._free.get(size)
            memory = found.pop() if found else None
            self._nbytes -= 0 if memory is None else size
        if memory is None:
            memory = np.empty(size, np.uint8)
        # The tensor and all its views keep this array alive, and nothing else does.
        array = memory.view()
        # Runs wherever the array dies, perhaps inside a collection that the lock's own holder set off: so it
        # takes no lock.
        weakref.finalize(array, self._returned.append, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept and that nobody uses."""
        with self._lock:
            self._sort()
            return self._nbytes

    def _sort(self) -> None:
        """Keep what came back, as far as there is room."""
        while self._returned:
            memory = self._returned.popleft()
            if self._nbytes + memory.size <= self._limit:
                self._free.setdefault(memory.size, []).append(memory)
                self._nbytes += memory.size
