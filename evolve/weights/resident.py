"""Parents that stay in the memory of a GPU."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from evolve.weights.model import Model


def resident(models: Mapping[str, Model], device: torch.device, budget: int) -> dict[str, Model]:
    """Return the same models with their tensors on ``device``.

    A tensor moves when it is first read. It stays there as long as all that stay take at most ``budget``
    bytes; what is read after that moves again each time, so models larger than the memory work too.
    """
    room = _Room(budget)
    return {
        name: replace(
            model,
            tensor=_Resident(model.tensor, device, room),
            exact=None if model.exact is None else _Resident(model.exact, device, room),
        )
        for name, model in models.items()
    }


class _Room:
    """The bytes that are left for all models together."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True


class _Resident:
    def __init__(self, read: Callable[[str], Tensor], device: torch.device, room: _Room) -> None:
        self._read = read
        self._device = device
        self._room = room
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        tensor = self._read(name).to(self._device)
        if self._room.take(tensor.numel() * tensor.element_size()):
            self._kept[name] = tensor
        return tensor
