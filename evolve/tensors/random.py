"""Uniform random words that depend on a seed and a place alone.

The generator is Philox-4x32-10 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3), as on GPUs.
Its key is the seed. Element ``e`` of a tensor takes word ``(e mod 1024) div 256`` of the counter
``(e div 1024) * 256 + e mod 256``: so 1024 elements come from 256 counters that are worked on side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024
_LANES = BLOCK // 4
_MASK = 0xFFFFFFFF
_MULTIPLY = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def words(seed: int, start: int, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the words of the elements ``start`` to ``start + count``, as uint32.

    Args:
        seed: From 0 to 2**64 - 1.
        start: The first element.
        count: How many.
    """
    from evolve.tensors.fused.kernel import random_block

    first, skip = divmod(start, BLOCK)
    blocks = -(-(skip + count) // BLOCK)
    out = np.empty(blocks * BLOCK, np.uint32)
    for number in range(blocks):
        random_block(np.uint64(seed), first + number, out[number * BLOCK : (number + 1) * BLOCK])
    return out[skip : skip + count]


def words_on(device: torch.device, seed: int, count: int) -> Tensor:
    """Return the first ``count`` words as int64 on any device, by single operations of torch."""
    blocks = -(-count // BLOCK)
    counter = torch.arange(blocks * _LANES, dtype=torch.int64, device=device)
    state = [counter & _MASK, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)]
    key = [seed & _MASK, seed >> 32]
    for _ in range(10):
        # The products overflow int64 and wrap around, which leaves all 64 bits as they should be.
        first, second = state[0] * _MULTIPLY[0], state[2] * _MULTIPLY[1]
        state = [
            ((second >> 32) & _MASK) ^ state[1] ^ key[0],
            second & _MASK,
            ((first >> 32) & _MASK) ^ state[3] ^ key[1],
            first & _MASK,
        ]
        key = [(part + weyl) & _MASK for part, weyl in zip(key, _WEYL, strict=True)]
    ordered = torch.stack([part.view(blocks, _LANES) for part in state], dim=1)
    return ordered.reshape(-1)[:count]
