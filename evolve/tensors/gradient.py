"""Values that change over the depth of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def depth(layer: int | None, layers: int) -> float:
    """Return where a tensor stands: 0 for the first layer, 1 for the last, as mergekit counts.

    A tensor outside the layers (embedding, last norm, head) stands at 0, the only layer of a model at 1.
    """
    if layer is None:
        return 0.0
    return 1.0 if layers <= 1 else min(1.0, layer / (layers - 1))


def at_depth(values: Sequence[float], t: float) -> float:
    """Return the value at ``t`` in [0, 1] of the line through equally spaced ``values``, at least one."""
    place = t * (len(values) - 1)
    left = min(int(place), len(values) - 1)
    right = min(left + 1, len(values) - 1)
    share = place - left
    return (1 - share) * values[left] + share * values[right]
