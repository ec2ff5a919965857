"""The compiled pass. Imported on first use, since numba takes a second to import.

One function for each combination of :class:`Kind` and number of models, compiled when it is first used. The
models' terms are unrolled in the instructions of one element, so that they stay in registers; the loop over
elements is left to LLVM, which makes vector instructions of it.

All of it stands in one file (but for Philox, which will not change): numba keeps compiled code by the time
and size of the file that a function is in, so a change in another file would go on running the old code.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from evolve.tensors.fused.draws import philox

BLOCK = 1024  # elements; a block has keys of its own, and its ties are counted together
EVERYTHING, MAGNITUDE, CHANCE, RANKED, RESCALED = range(5)  # the last: ranked, and divided by the chance
NO_SUM, SUM, MEAN = range(3)
BFLOAT16, FLOAT16, FLOAT32 = range(3)

THRESHOLD, TIE = range(2)
"""Rows of the state of MAGNITUDE: magnitudes from here on stay; magnitudes that are counted (-1: none)."""
KEY_0, KEY_1, KEY_2, LAST, LOW, STEP = range(6)
"""Rows of the others: the block's keys; the last word that keeps an entry; see ``RankedChance``."""
ROWS = {EVERYTHING: 0, MAGNITUDE: 2, CHANCE: 4, RANKED: 6, RESCALED: 6}

_SPREAD, _FIRST, _SECOND = 0x9E3779B9, 0x7FEB352D, 0x846CA68B
_STEPS_24 = float(1 << 24)
_I16, _I32 = ir.IntType(16), ir.IntType(32)
_F16, _F32 = ir.HalfType(), ir.FloatType()
_STORED = {BFLOAT16: _I16, FLOAT16: _F16, FLOAT32: _F32}
_BYTES = {BFLOAT16: 2, FLOAT16: 2, FLOAT32: 4}
INFINITE = {BFLOAT16: 0x7F7F8000, FLOAT16: 0x477FF000, FLOAT32: 0x7F800000}
"""Magnitudes from these on, as bits of a float32, are rounded to infinity, or are no numbers."""


class Kind(NamedTuple):
    """What a compiled function is for.

    Attributes:
        rule: EVERYTHING, MAGNITUDE, CHANCE, RANKED or RESCALED, for all models.
        elect: NO_SUM, SUM or MEAN.
        based: Whether there is a base.
        divided: Whether the sum is divided.
        source: Type of the tensors.
        rounded: Type to which the result is rounded.
        stored: Type in which it is written after that.
    """

    rule: int
    elect: int
    based: bool
    divided: bool
    source: int
    rounded: int
    stored: int


def _float(value: float) -> Any:
    return ir.Constant(_F32, value)


def _load(builder: Any, kind: Any, nbytes: int, address: Any, index: Any) -> Any:
    """Load what nobody writes to during the call: then no order with the stores has to be kept."""
    loaded = builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [index]), align=nbytes)
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded


def _wide(builder: Any, kind: int, value: Any) -> Any:
    """Return a stored element as float32."""
    if kind == BFLOAT16:
        return builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), _F32)
    return builder.fpext(value, _F32) if kind == FLOAT16 else value


def _magnitude(builder: Any, value: Any) -> Any:
    return builder.and_(builder.bitcast(value, _I32), _I32(0x7FFFFFFF))


def _narrow(builder: Any, kind: int, value: Any) -> Any:
    """Round a float32 to nearest, ties to even; a NaN stays one."""
    if kind == FLOAT16:
        return builder.fptrunc(value, _F16)
    if kind == FLOAT32:
        return value
    word = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(word, _I32(16)), _I32(1))
    rounded = builder.add(builder.add(word, _I32(0x7FFF)), odd)
    # Rounding up would carry a NaN into the sign: it only loses its low bits, and stays one.
    nan = builder.icmp_signed(">", _magnitude(builder, value), _I32(0x7F800000))
    kept = builder.select(nan, builder.or_(word, _I32(0x400000)), rounded)
    return builder.trunc(builder.lshr(kept, _I32(16)), _I16)


@intrinsic(prefer_literal=True)
def read(_context: Any, kind: Any, address: Any, index: Any) -> Any:
    """Return a stored element as float32."""
    source = kind.literal_value

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _wide(builder, source, _load(builder, _STORED[source], _BYTES[source], args[1], args[2]))

    return types.float32(kind, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def write(_context: Any, rounded: Any, stored: Any, address: Any, index: Any, value: Any) -> Any:
    """Round a float32 to one type and write it as another; return the bits of its magnitude, as int32."""
    first, second = rounded.literal_value, stored.literal_value

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = _narrow(builder, first, args[4])
        if first != second:
            word = _narrow(builder, second, _wide(builder, first, word))
        place = builder.gep(builder.inttoptr(args[2], _STORED[second].as_pointer()), [args[3]])
        builder.store(word, place, align=_BYTES[second])
        return _magnitude(builder, args[4])

    return types.int32(rounded, stored, types.int64, types.int64, types.float32), generate


@intrinsic(prefer_literal=True)
def taken(_context: Any, rows: Any, like: Any, address: Any) -> Any:
    """Return the int32 at an address as a tuple, ``rows`` for each entry of ``like``: for registers."""
    count = rows.literal_value * len(like)
    made = types.UniTuple(types.int32, count or 1)

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        first = builder.inttoptr(args[2], _I32.as_pointer())
        values = [builder.load(builder.gep(first, [_I32(k)])) for k in range(count)] or [_I32(0)]
        return context.make_tuple(builder, made, values)

    return made(rows, like, types.int64), generate


@intrinsic
def magnitude(_context: Any, value: Any) -> Any:
    """Return the bits of a float32 without its sign, as int32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _magnitude(builder, args[0])

    return types.int32(types.float32), generate


@intrinsic
def larger(_context: Any, left: Any, right: Any) -> Any:
    """Return the larger of two int32, as int32, which numba's own ``max`` would widen."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *args), *args)

    return types.int32(types.int32, types.int32), generate


@intrinsic
def zeros(_context: Any, like: Any) -> Any:
    """Return a tuple of int32, as long as ``like``."""
    made = types.UniTuple(types.int32, len(like))

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        return context.make_tuple(builder, made, [_I32(0)] * len(made))

    return made(like), generate


@intrinsic
def plus(_context: Any, left: Any, right: Any) -> Any:
    """Return the sums of two tuples."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pairs = [[builder.extract_value(side, k) for side in args] for k in range(len(left))]
        return context.make_tuple(builder, left, [builder.add(*pair) for pair in pairs])

    return left(left, right), generate


def _word(builder: Any, lane: Any, keys: Any) -> Any:
    """Return one random word; see :mod:`evolve.tensors.random`."""
    mixed = builder.add(builder.mul(lane, _I32(_SPREAD)), keys[0])
    mixed = builder.mul(builder.xor(mixed, builder.lshr(mixed, _I32(16))), _I32(_FIRST))
    mixed = builder.xor(builder.xor(mixed, builder.lshr(mixed, _I32(15))), keys[1])
    mixed = builder.mul(mixed, _I32(_SECOND))
    return builder.xor(builder.xor(mixed, builder.lshr(mixed, _I32(16))), keys[2])


def _kept(builder: Any, rule: int, delta: Any, state: Any, lane: Any, rank: Any) -> tuple[Any, Any]:
    """Return what the rule leaves of a delta, and 1 where its magnitude is one that is counted."""
    counted = _I32(0)
    if rule == EVERYTHING:
        return delta, counted
    if rule == MAGNITUDE:
        size = _magnitude(builder, delta)
        stays = builder.icmp_signed(">=", size, state[THRESHOLD])
        counted = builder.zext(builder.icmp_signed("==", size, state[TIE]), _I32)
        factor = _float(1.0)
    else:
        drawn = _word(builder, lane, state[KEY_0 : KEY_2 + 1])
        if rule == CHANCE:
            stays = builder.icmp_unsigned("<=", drawn, state[LAST])
            factor = _float(1.0)
        else:
            low, step = (builder.bitcast(state[row], _F32) for row in (LOW, STEP))
            limit = builder.fadd(builder.fmul(builder.uitofp(rank, _F32), step), low)
            limit = builder.select(builder.fcmp_ordered(">", limit, _float(0.0)), limit, _float(0.0))
            most = _float(_STEPS_24)
            limit = builder.select(builder.fcmp_ordered("<", limit, most), limit, most)
            limit = builder.call(builder.module.declare_intrinsic("llvm.rint", [_F32]), [limit])
            stays = builder.fcmp_ordered("<", builder.uitofp(builder.lshr(drawn, _I32(8)), _F32), limit)
            factor = builder.fdiv(most, limit) if rule == RESCALED else _float(1.0)
    # A product, so that a NaN or an infinity is not hidden.
    return builder.fmul(delta, builder.select(stays, factor, _float(0.0))), counted


def _elected(builder: Any, terms: Any, total: Any, weights: Any, *, mean: bool) -> Any:
    """Return the sum or weighted mean of the terms that have the sign of ``total``, the sum of all."""
    sign = builder.select(builder.fcmp_ordered(">=", total, _float(0.0)), _float(1.0), _float(-1.0))
    result = divisor = _float(0.0)
    size = builder.module.declare_intrinsic("llvm.fabs", [_F32])
    for term, weight in zip(terms, weights, strict=True):
        agreeing = builder.fmul(term, sign)
        # Written so that a NaN comes through, and that each line is one instruction.
        against = builder.fcmp_ordered(">", _float(0.0), agreeing)
        result = builder.fadd(result, builder.select(against, _float(0.0), agreeing))
        takes_part = builder.fcmp_ordered(">", agreeing, _float(0.0))
        more = builder.fadd(divisor, builder.call(size, [weight]))
        divisor = builder.select(takes_part, more, divisor)
    if mean:
        none = builder.fcmp_ordered("==", divisor, _float(0.0))
        result = builder.fdiv(result, builder.select(none, _float(1.0), divisor))
    return builder.fmul(result, sign)


@intrinsic(prefer_literal=True)
def summed(  # noqa: PLR0913  all that one element needs
    _context: Any,
    rule: Any,
    elect: Any,
    source: Any,
    index: Any,
    lane: Any,
    start: Any,
    sources: Any,
    ranks: Any,
    factors: Any,
    weights: Any,
    state: Any,
) -> Any:
    """Return the sum of all models' terms of one element, and which of their magnitudes are counted."""
    which, election, kind = rule.literal_value, elect.literal_value, source.literal_value
    count = len(sources)
    made = types.Tuple((types.float32, types.UniTuple(types.int32, count)))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, i, place, base, addresses, places, multipliers, shares, words = args
        terms, flags, signed = [], [], []
        for k in range(count):
            address = builder.extract_value(addresses, k)
            value = _wide(builder, kind, _load(builder, _STORED[kind], _BYTES[kind], address, i))
            rank = None
            if which in {RANKED, RESCALED}:
                short = _load(builder, _I16, 2, builder.extract_value(places, k), i)
                rank = builder.zext(short, _I32)
            own = [builder.extract_value(words, row * count + k) for row in range(ROWS[which])]
            delta, counted = _kept(builder, which, builder.fsub(value, base), own, place, rank)
            terms.append(builder.fmul(delta, builder.fptrunc(builder.extract_value(multipliers, k), _F32)))
            signed.append(builder.fptrunc(builder.extract_value(shares, k), _F32))
            flags.append(counted)
        total = terms[0]
        for term in terms[1:]:
            total = builder.fadd(total, term)
        if election != NO_SUM:
            total = _elected(builder, terms, total, signed, mean=election == MEAN)
        counts = context.make_tuple(builder, made[1], flags)
        return context.make_tuple(builder, signature.return_type, (total, counts))

    given = (rule, elect, source, index, lane, start, sources, ranks, factors, weights, state)
    return made(*given), generate


@njit(nogil=True, cache=True, error_model="numpy")
def _new_keys(state, seeds, number):
    """Write the keys of a block into the state."""
    count = seeds.size
    for k in range(count):
        keys = philox(seeds[k], np.uint64(number))
        state[KEY_0 * count + k] = np.int32(keys[0])
        state[KEY_1 * count + k] = np.int32(keys[1])
        state[KEY_2 * count + k] = np.int32(keys[2])


@njit(nogil=True, cache=True, error_model="numpy")
def _no_more_ties(state, left):
    """Let ties go where none is left: only larger magnitudes stay, and nothing is counted any more."""
    count = left.size
    for k in range(count):
        if left[k] == 0 and state[TIE * count + k] >= 0:
            state[THRESHOLD * count + k] += 1
            state[TIE * count + k] = -1


@njit(nogil=True, cache=True, error_model="numpy")
def _read_any(kind, address, index):
    """Return a stored element as float32; slow."""
    if kind == BFLOAT16:
        return read(BFLOAT16, address, index)
    if kind == FLOAT16:
        return read(FLOAT16, address, index)
    return read(FLOAT32, address, index)


@njit(nogil=True, cache=True, error_model="numpy")
def _tie_too_many(source, base, address, low, high, tie, left):
    """Return the place of the first tie that must go, or ``high``."""
    for i in range(low, high):
        start = _read_any(source, base, i) if base else np.float32(0)
        if magnitude(_read_any(source, address, i) - start) == tie:
            if left == 0:
                return i
            left -= 1
    return high


@njit(nogil=True, cache=True, error_model="numpy")
def _room(source, base, sources, low, high, found, state, left):
    """Return up to where all ties that were found may stay; if that is ``high``, fewer are left then."""
    end, count = high, left.size
    for k in range(count):
        if found[k] > left[k]:
            end = _tie_too_many(source, base, sources[k], low, end, state[TIE * count + k], left[k])
    if end == high:
        for k in range(count):
            left[k] -= found[k]
    return end


@cache
def compiled(kind: Kind) -> Any:
    """Return ``fused``, compiled for one kind; see :func:`evolve.tensors.fused.merge`."""
    rule, elect, based, divided, source, rounded, stored = kind
    rows, infinite = ROWS[rule], INFINITE[rounded]

    @njit(nogil=True, cache=True, error_model="numpy")
    def fused(  # noqa: PLR0913  one call for a whole tensor: a call a block costs more
        size, base, sources, ranks, factors, weights, state, seeds, left, divisor, factor, out
    ):
        """Write ``base + factor * sum / divisor`` to the address ``out``; return whether all is finite.

        ``base``, ``sources`` and ``ranks`` are addresses, ``factors`` those of the deltas. Written to are
        ``state`` (int32) and ``left`` (int64), how many ties of each model still stay.
        """
        divisor, factor = np.float32(divisor), np.float32(factor)
        finite = True
        low, high = 0, min(BLOCK, size)
        while low < size:
            if rule >= CHANCE:
                _new_keys(state, seeds, low // BLOCK)
            if rule == MAGNITUDE:
                _no_more_ties(state, left)
            values = taken(rows, sources, state.ctypes.data)
            largest = np.int32(0)
            found = zeros(sources)
            for lane in range(high - low):
                i = low + lane
                start = read(source, base, i) if based else np.float32(0)
                total, counted = summed(
                    rule, elect, source, i, np.int32(lane), start, sources, ranks, factors, weights, values
                )
                found = plus(found, counted)
                if divided:
                    total = total / divisor
                largest = larger(largest, write(rounded, stored, out, i, total * factor + start))
            if rule == MAGNITUDE:
                end = _room(source, base, sources, low, high, found, state, left)
                if end < high:
                    high = end  # these once more; then the rest, without the tie that must go
                    continue
            if largest >= infinite:
                finite = False
            low, high = high, min(high + BLOCK, size)
        return finite

    return fused
