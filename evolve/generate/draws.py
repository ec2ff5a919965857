"""Draws that depend on seed and name alone: the same on any machine, in any order."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def number(seed: int, *names: object) -> int:
    """Return 64 bits that seed and names decide."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def one(values: Sequence[T], seed: int, *names: object) -> T:
    """Return one of ``values``, of which there is at least one."""
    return values[number(seed, *names) % len(values)]


def some(values: Sequence[T], count: int, seed: int, *names: object) -> list[T]:
    """Return ``count`` of ``values``, none twice, in a drawn order; all of them where there are fewer."""
    order = sorted(range(len(values)), key=lambda index: number(seed, *names, index))
    return [values[index] for index in order[:count]]
