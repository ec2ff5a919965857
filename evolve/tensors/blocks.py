"""Flat numpy views of tensors, and the blocks in which they are worked on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from torch import Tensor

Floats: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float32]]"

# A few such blocks fit into a core's cache together, and the call of a numpy function is short against one.
BLOCK = 1 << 15


def flat(tensor: Tensor) -> Floats:
    """Return the elements of a float32 CPU tensor in row-major order.

    The array shares its memory with a contiguous tensor, and is a copy of any other.
    """
    if tensor.dtype != torch.float32:
        raise TypeError(f"expected a float32 tensor, got {tensor.dtype}")
    array: Floats = tensor.detach().contiguous().view(-1).numpy()
    return array


def shared(tensor: Tensor) -> Floats:
    """Return the elements of a tensor that is changed in place: it must be contiguous."""
    if not tensor.is_contiguous():
        raise ValueError("a tensor that is changed in place must be contiguous")
    return flat(tensor)


def blocks(count: int) -> Iterator[slice]:
    """Yield slices that cover ``range(count)``."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))
