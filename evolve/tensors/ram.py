"""Task vectors that move few places: which of these are shared (RAM; Yuan et al. 2026, arXiv:2601.13572)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, blocks, flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


class Moved(NamedTuple):
    """How many places one model moves."""

    shared: int
    """Together with another model."""
    unique: int
    """Alone."""


def count_moved(deltas: Sequence[Tensor], epsilon: float) -> list[Moved]:
    """Count, for each delta, the places that it moves by more than ``epsilon``.

    Args:
        deltas: float32, all of one shape, at least one.
        epsilon: Not negative.
    """
    sources = [flat(delta) for delta in deltas]
    shared, unique = [0] * len(sources), [0] * len(sources)
    for part in blocks(sources[0].size):
        moved, count = _moved([source[part] for source in sources], epsilon)
        alone = count == 1
        for index, places in enumerate(moved):
            own = int(np.count_nonzero(places & alone))
            unique[index] += own
            shared[index] += int(np.count_nonzero(places)) - own
    return [Moved(*counts) for counts in zip(shared, unique, strict=True)]


def merge_moved(deltas: Sequence[Tensor], epsilon: float, factors: Sequence[float]) -> Tensor:
    """Average what several deltas move in each place, and take what one alone moves times its factor.

    Args:
        deltas: float32, all of one shape, at least one.
        epsilon: Elements whose magnitude is not above this count as zero.
        factors: One per delta.
    """
    out = torch.empty(deltas[0].shape, dtype=torch.float32)
    total = flat(out)
    sources = [flat(delta) for delta in deltas]
    term = np.empty(BLOCK, np.float32)
    for part in blocks(total.size):
        into = total[part]
        into[:] = 0
        moved, count = _moved([source[part] for source in sources], epsilon)
        alone = count == 1
        for source, places, factor in zip(sources, moved, factors, strict=True):
            # A product, so that NaN and infinity are not hidden.
            scaled = np.multiply(source[part], places, out=term[: into.size])
            if factor != 1.0:
                np.multiply(scaled, np.float32(factor), out=scaled, where=alone)
            into += scaled
        into /= np.maximum(count, 1)
    return out


def _moved(
    sources: Sequence[NDArray[np.float32]], epsilon: float
) -> tuple[list[NDArray[np.bool_]], NDArray[np.float32]]:
    """Return which places each one moves, and how many move each place."""
    moved = [np.abs(source) > np.float32(epsilon) for source in sources]
    count = np.zeros(sources[0].size, np.float32)
    for places in moved:
        count += places
    return moved, count
