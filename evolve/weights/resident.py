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
            tensor=_Resident(model, model.tensor, device, room),
            exact=None if model.exact is None else _Resident(model, model.exact, device, room),
        )
        for name, model in models.items()
    }


def at_home(model: Model) -> Model:
    """Return a model of :func:`resident` with its tensors where they were before, any other as it is.

    What is computed on the CPU reads that: it spares the way to the device and back, and room there.
    """
    if not isinstance(model.tensor, _Resident):
        return model
    home = model.tensor.home
    found = replace(model, tensor=home.tensor, exact=home.exact)
    # The same object where it can be: what a memo keeps belongs to it.
    return home if found == home else found


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
    def __init__(self, home: Model, read: Callable[[str], Tensor], device: torch.device, room: _Room) -> None:
        self.home = home
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
