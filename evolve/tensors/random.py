"""Uniform random words that depend on a seed and a place alone.

The generator is Philox-4x32-10 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3), as on GPUs.
Its key is the seed. Element ``e`` of :func:`words` takes word ``(e mod 1024) div 256`` of the counter
``(e div 1024) * 256 + e mod 256``: so 1024 elements come from 256 counters that are worked on side by side.

A merge that drops entries at random needs a word for each entry of each model, and ten rounds a word would
take longer than all the rest. So :func:`draws` takes from Philox three keys for each 1024 entries only, the
first three words of counter ``e div 1024``. Between them they go into a hash of ``e mod 1024`` of the kind of
MurmurHash3's finalizer: two rounds of shift and multiply (the multipliers are those of Wellons' lowbias32),
with a key before, between and after them. Entries of different blocks, models and tensors are as independent
as Philox; within a block tests see no difference to it (tests/tensors/test_draws.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024
_MASK = 0xFFFFFFFF
_MULTIPLY = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_SPREAD, _FIRST, _SECOND = 0x9E3779B9, 0x7FEB352D, 0x846CA68B

Words: TypeAlias = "np.ndarray[Any, np.dtype[np.uint32]]"


def words(seed: int, start: int, count: int) -> Words:
    """Return the words of Philox for the elements ``start`` to ``start + count``, as uint32.

    Args:
        seed: From 0 to 2**64 - 1.
        start: The first element.
        count: How many.
    """
    from evolve.tensors.fused.draws import random_block

    return _blocks(random_block, seed, start, count)


def draws(seed: int, start: int, count: int) -> Words:
    """Return the words by which the entries ``start`` to ``start + count`` of a tensor stay, as uint32.

    Args:
        seed: From 0 to 2**64 - 1.
        start: The first entry.
        count: How many.
    """
    from evolve.tensors.fused.draws import draw_block

    return _blocks(draw_block, seed, start, count)


def _blocks(fill: Any, seed: int, start: int, count: int) -> Words:
    first, skip = divmod(start, BLOCK)
    blocks = -(-(skip + count) // BLOCK)
    out = np.empty(blocks * BLOCK, np.uint32)
    for number in range(blocks):
        fill(np.uint64(seed), np.uint64(first + number), out[number * BLOCK : (number + 1) * BLOCK])
    return out[skip : skip + count]


def draws_on(device: torch.device, seed: int, count: int) -> Tensor:
    """Return the first ``count`` of :func:`draws` as int64 on any device, by single operations of torch."""
    counter = torch.arange(-(-count // BLOCK), dtype=torch.int64, device=device)
    first, second, third = (key[:, None] for key in _philox(seed, counter)[:3])
    lane = torch.arange(BLOCK, dtype=torch.int64, device=device)
    # Products may overflow int64 and wrap around, which leaves the lower 32 bits as they should be.
    mixed = (lane * _SPREAD + first) & _MASK
    mixed = ((mixed ^ (mixed >> 16)) * _FIRST) & _MASK
    mixed = ((mixed ^ (mixed >> 15) ^ second) * _SECOND) & _MASK
    return (mixed ^ (mixed >> 16) ^ third).view(-1)[:count]


def _philox(seed: int, counter: Tensor) -> list[Tensor]:
    """Return the four words of each counter, all int64."""
    state = [counter & _MASK, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)]
    key = [seed & _MASK, seed >> 32]
    for _ in range(10):
        # These too overflow; all 64 bits are as they should be.
        first, second = state[0] * _MULTIPLY[0], state[2] * _MULTIPLY[1]
        state = [
            ((second >> 32) & _MASK) ^ state[1] ^ key[0],
            second & _MASK,
            ((first >> 32) & _MASK) ^ state[3] ^ key[1],
            first & _MASK,
        ]
        key = [(part + weyl) & _MASK for part, weyl in zip(key, _WEYL, strict=True)]
    return state
