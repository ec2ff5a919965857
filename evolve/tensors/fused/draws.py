"""The compiled generators of :mod:`evolve.tensors.random`. Imported on first use, as the kernel is."""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK = 1024
_MULTIPLY = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_SPREAD, _FIRST, _SECOND = np.uint64(0x9E3779B9), np.uint64(0x7FEB352D), np.uint64(0x846CA68B)


@njit(nogil=True, cache=True, error_model="numpy")
def philox(seed, counter):
    """Return the four words of a counter: Philox-4x32 with ten rounds."""
    c0, c1 = counter & _LOW, counter >> _32
    c2 = np.uint64(0)
    c3 = np.uint64(0)
    k0, k1 = np.uint64(seed) & _LOW, np.uint64(seed) >> _32
    for _ in range(10):
        first, second = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c2 = (second >> _32) ^ c1 ^ k0, (first >> _32) ^ c3 ^ k1
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@njit(nogil=True, cache=True, error_model="numpy")
def random_block(seed, number, out):
    """Fill ``out`` (uint32, BLOCK) with the words of one block, four for each counter.

    Word ``j`` of counter ``number * BLOCK // 4 + i`` goes to ``out[j * BLOCK // 4 + i]``.
    """
    lanes = BLOCK // 4
    for lane in range(lanes):
        words = philox(seed, np.uint64(number) * np.uint64(lanes) + np.uint64(lane))
        for j in range(4):
            out[j * lanes + lane] = words[j]


@njit(nogil=True, cache=True, error_model="numpy")
def draw_block(seed, number, out):
    """Fill ``out`` (uint32, BLOCK) with the words by which the entries of one block stay or go."""
    keys = philox(seed, np.uint64(number))
    before, between, after = np.uint64(keys[0]), np.uint64(keys[1]), np.uint64(keys[2])
    for lane in range(BLOCK):
        mixed = (np.uint64(lane) * _SPREAD + before) & _LOW
        mixed = ((mixed ^ (mixed >> np.uint64(16))) * _FIRST) & _LOW
        mixed = ((mixed ^ (mixed >> np.uint64(15)) ^ between) * _SECOND) & _LOW
        out[lane] = np.uint32(mixed ^ (mixed >> np.uint64(16)) ^ after)
