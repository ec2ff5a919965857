"""What numba lacks: pointers, and the bit patterns of the three float types, as LLVM instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

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
    """Return a float32 as an element of the type of ``like``, to nearest, ties to even.

    A NaN may become an infinity in bfloat16; whoever calls looks for both.
    """

    def generate(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == types.uint16:
            word = builder.bitcast(args[0], _I32)
            odd = builder.and_(builder.lshr(word, _I32(16)), _I32(1))
            rounded = builder.add(builder.add(word, _I32(0x7FFF)), odd)
            return builder.trunc(builder.lshr(rounded, _I32(16)), _I16)
        if signature.return_type == types.int16:
            return builder.bitcast(builder.fptrunc(args[0], _F16), _I16)
        return args[0]

    return like(types.float32, like), generate
