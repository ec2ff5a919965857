"""Agreement between task vectors (TIES; Yadav et al. 2023, arXiv:2306.01708)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evolve.tensors.blocks import BLOCK, blocks, flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def disjoint_sum(deltas: Sequence[Tensor], weights: Sequence[float], *, mean: bool) -> Tensor:
    """Add up, in each place, the weighted deltas that have the elected sign.

    The elected sign is that of the sum of all weighted deltas; a sum of exactly zero elects plus. With
    ``mean`` the result is divided by the sum of the magnitudes of the weights that took part, so that it is
    never larger than the largest delta. Where none took part it is zero.

    Args:
        deltas: float32, all of one shape, at least one.
        weights: One per delta; a negative one turns its delta around.
        mean: Whether to divide.
    """
    out = torch.empty(deltas[0].shape, dtype=torch.float32)
    total = flat(out)
    sources = [flat(delta) for delta in deltas]
    factors = [np.float32(weight) for weight in weights]
    terms = np.empty((len(sources), BLOCK), np.float32)
    scratch = np.empty(BLOCK, np.float32)
    divisor = np.empty(BLOCK, np.float32)
    for part in blocks(total.size):
        into = total[part]
        size = into.size
        for source, factor, term in zip(sources, factors, terms, strict=True):
            np.multiply(source[part], factor, out=term[:size])
        np.add.reduce(terms[:, :size], axis=0, out=into)
        # -1 or +1; multiplied by it, what agrees is positive and what does not is cut off at zero.
        sign = np.copysign(np.float32(1), into + np.float32(0))
        into[:] = 0
        divisor[:size] = 0
        for factor, term in zip(factors, terms, strict=True):
            agreeing = np.multiply(term[:size], sign, out=term[:size])
            np.maximum(agreeing, 0, out=agreeing)
            into += agreeing
            if mean:
                np.multiply(agreeing > 0, abs(factor), out=scratch[:size])
                divisor[:size] += scratch[:size]
        if mean:
            divisor[:size][divisor[:size] == 0] = 1
            into /= divisor[:size]
        into *= sign
    return out
