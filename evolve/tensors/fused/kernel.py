"""The compiled pass. Imported on first use, since numba takes a second to import.

All of it stands in one file: numba keeps compiled code by the time and size of the file that a function is
in, so a change of an instruction or a number in another file would go on running the old code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 1024  # elements; all buffers of a block stay in the first-level cache
LANES = BLOCK // 4  # a counter of the generator gives four words
EVERYTHING, MAGNITUDE, CHANCE, RANKED = range(4)
NO_SUM, SUM, MEAN = range(3)

_FIRST, _SECOND = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_MAGNITUDE_BITS = np.int32(0x7FFFFFFF)
_I16, _I32, _F16, _F32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()


@intrinsic
def pointer(_context: Any, address: Any) -> Any:
    """Return the address as a pointer, for ``numba.carray``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def bits(_context: Any, value: Any) -> Any:
    """Return the bits of a float32 as int32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), generate


@intrinsic
def floated(_context: Any, word: Any) -> Any:
    """Return the float32 of the bits in an int32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), generate


@intrinsic
def widened(_context: Any, stored: Any) -> Any:
    """Return a stored element as float32: a uint16 holds a bfloat16, an int16 a float16."""

    def generate(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)
        if signature.args[0] == types.int16:
            return builder.fpext(builder.bitcast(args[0], _F16), _F32)
        return args[0]

    return types.float32(stored), generate


@intrinsic
def narrowed(_context: Any, value: Any, like: Any) -> Any:
    """Return a float32 as an element of the type of ``like``, to nearest, ties to even; a NaN stays one."""

    def generate(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == types.uint16:
            word = builder.bitcast(args[0], _I32)
            odd = builder.and_(builder.lshr(word, _I32(16)), _I32(1))
            rounded = builder.add(builder.add(word, _I32(0x7FFF)), odd)
            # Rounding up would carry a NaN into the sign: it only loses its low bits, and stays one.
            nan = builder.icmp_unsigned(">", builder.and_(word, _I32(0x7FFFFFFF)), _I32(0x7F800000))
            kept = builder.select(nan, builder.or_(word, _I32(0x400000)), rounded)
            return builder.trunc(builder.lshr(kept, _I32(16)), _I16)
        if signature.return_type == types.int16:
            return builder.bitcast(builder.fptrunc(args[0], _F16), _I16)
        return args[0]

    return like(types.float32, like), generate


@njit(nogil=True, cache=True, error_model="numpy")
def random_block(seed, number, out):
    """Fill ``out`` (uint32, BLOCK) with the words of one block: Philox-4x32 with ten rounds.

    Word ``j`` of counter ``number * LANES + i`` goes to ``out[j * LANES + i]``.
    """
    for lane in range(LANES):
        counter = np.uint64(number) * np.uint64(LANES) + np.uint64(lane)
        c0, c1 = counter & _LOW, counter >> _32
        c2 = np.uint64(0)
        c3 = np.uint64(0)
        k0, k1 = np.uint64(seed) & _LOW, np.uint64(seed) >> _32
        for _ in range(10):
            first, second = c0 * _FIRST, c2 * _SECOND
            c0, c2 = (second >> _32) ^ c1 ^ k0, (first >> _32) ^ c3 ^ k1
            c1, c3 = second & _LOW, first & _LOW
            k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
        out[lane] = np.uint32(c0)
        out[LANES + lane] = np.uint32(c1)
        out[2 * LANES + lane] = np.uint32(c2)
        out[3 * LANES + lane] = np.uint32(c3)


@njit(nogil=True, cache=True, error_model="numpy")
def _keep_large(delta, threshold, left):
    """Zero what is below the threshold, and ties after the first ``left``; return how many are left."""
    equal = np.int32(0)
    for i in range(delta.size):
        equal += np.int32((bits(delta[i]) & _MAGNITUDE_BITS) == threshold)
    if equal <= left:
        for i in range(delta.size):
            stays = (bits(delta[i]) & _MAGNITUDE_BITS) >= threshold
            delta[i] *= np.float32(1) if stays else np.float32(0)
        return left - equal
    if left == 0:
        for i in range(delta.size):
            stays = (bits(delta[i]) & _MAGNITUDE_BITS) > threshold
            delta[i] *= np.float32(1) if stays else np.float32(0)
        return left
    for i in range(delta.size):
        size = bits(delta[i]) & _MAGNITUDE_BITS
        tie = size == threshold and left > 0
        left -= np.int64(tie)
        if size < threshold or (size == threshold and not tie):
            delta[i] *= np.float32(0)
    return left


@njit(nogil=True, cache=True, error_model="numpy")
def _keep_ranked(delta, words, ranks, table):
    """Keep entries by rank. An entry of ``table``: the last word that keeps one, the bits of its factor."""
    for i in range(delta.size):
        entry = table[ranks[i]]
        factor = floated(np.int32(entry >> _32))
        delta[i] *= factor if words[i] <= np.uint32(entry) else np.float32(0)


@njit(nogil=True, cache=True, error_model="numpy")
def _elect(terms, weights, mean, total, sign, divisor):
    """Turn ``total``, the sum of all terms, into the sum or weighted mean of the terms of the same sign."""
    size = total.size
    for i in range(size):
        sign[i] = np.float32(1) if total[i] >= 0 else np.float32(-1)
        total[i] = 0
        divisor[i] = 0
    for k in range(terms.shape[0]):
        term, share = terms[k, :size], abs(weights[k])
        for i in range(size):
            agreeing = term[i] * sign[i]
            # Not max(): a NaN must come through.
            agreeing = np.float32(0) if agreeing <= 0 else agreeing
            total[i] += agreeing
            divisor[i] += share if agreeing > 0 else np.float32(0)
    if mean:
        for i in range(size):
            total[i] /= np.float32(1) if divisor[i] == 0 else divisor[i]
    for i in range(size):
        total[i] *= sign[i]


@njit(nogil=True, cache=True, error_model="numpy")
def _drop(delta, number, seed, limit, ranks, table, words):
    """Keep entries of block ``number`` at random: by one limit, or by the ranks at an address."""
    random_block(seed, number, words)
    if ranks == 0:
        for i in range(delta.size):
            delta[i] *= np.float32(1) if np.uint64(words[i]) < limit else np.float32(0)
    else:
        row = carray(pointer(ranks), ((number + 1) * BLOCK,), np.uint16)[number * BLOCK :]
        entries = carray(pointer(table), (1 << 16,), np.uint64)
        _keep_ranked(delta, words, row[: delta.size], entries)


@njit(nogil=True, cache=True, error_model="numpy")
def _add(delta, scale, weight, total, first):
    """Turn a delta into a term, and add it to the total."""
    if first:
        for i in range(delta.size):
            delta[i] = total[i] = (delta[i] * scale) * weight
    else:
        for i in range(delta.size):
            term = (delta[i] * scale) * weight
            delta[i] = term
            total[i] += term


@njit(nogil=True, cache=True, error_model="numpy")
def _add_whole(source, start, scale, weight, total, first):
    """Add the term of a model of which everything stays: the same operations in one loop."""
    if first:
        for i in range(source.size):
            total[i] = ((widened(source[i]) - start[i]) * scale) * weight
    else:
        for i in range(source.size):
            total[i] += ((widened(source[i]) - start[i]) * scale) * weight


@njit(nogil=True, cache=True, error_model="numpy")
def fused(  # noqa: PLR0913  one call for a whole tensor: a call a block costs more
    base,
    has_base,
    addresses,
    weights,
    scales,
    modes,
    thresholds,
    ties,
    seeds,
    limits,
    ranks,
    tables,
    elect,
    divisor,
    factor,
    out,
):
    """Write ``base + factor * sum / divisor`` to ``out``; see :func:`evolve.tensors.fused.merge`."""
    count, size = addresses.size, out.size
    left = ties.copy()
    start = np.zeros(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    sign = np.empty(BLOCK, np.float32)
    shares = np.empty(BLOCK, np.float32)
    words = np.empty(BLOCK, np.uint32)
    terms = np.empty((count if elect != NO_SUM else 1, BLOCK), np.float32)
    for number in range((size + BLOCK - 1) // BLOCK):
        low = number * BLOCK
        length = min(BLOCK, size - low)
        if has_base:
            origin = base[low : low + length]
            for i in range(length):
                start[i] = widened(origin[i])
        for k in range(count):
            source = carray(pointer(addresses[k]), (size,), base.dtype)[low : low + length]
            if elect == NO_SUM and modes[k] == EVERYTHING:
                _add_whole(source, start[:length], scales[k], weights[k], total[:length], k == 0)
                continue
            delta = terms[k if elect != NO_SUM else 0, :length]
            for i in range(length):
                delta[i] = widened(source[i]) - start[i]
            if modes[k] == MAGNITUDE:
                left[k] = _keep_large(delta, np.int32(thresholds[k]), left[k])
            elif modes[k] != EVERYTHING:
                _drop(delta, number, seeds[k], limits[k], ranks[k], tables[k], words)
            _add(delta, scales[k], weights[k], total[:length], k == 0)
        if elect != NO_SUM:
            _elect(terms, weights, elect == MEAN, total[:length], sign[:length], shares[:length])
        target = out[low : low + length]
        for i in range(length):
            value = (total[i] / divisor) * factor + start[i]
            target[i] = narrowed(value, target[i])


@njit(nogil=True, cache=True, error_model="numpy")
def no_full_exponent(words, mask):
    """Return whether no word has all bits of ``mask`` set."""
    full = words.dtype.type(mask)
    for low in range(0, words.size, 8192):
        part = words[low : low + 8192]
        found = np.int32(0)
        for i in range(part.size):
            found |= np.int32((part[i] & full) == full)
        if found:
            return False
    return True
