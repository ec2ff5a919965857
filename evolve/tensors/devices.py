"""Where tensors are that are computed with together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def in_one_place(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on one device: the first that is not the CPU, if there is one."""
    away = [tensor.device for tensor in tensors if tensor.device.type != "cpu"]
    return [tensor.to(away[0]) for tensor in tensors] if away else list(tensors)
