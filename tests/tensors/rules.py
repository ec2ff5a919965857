"""What stays of a tensor by the rules of the fused pass, applied to the tensor alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evolve.tensors.fused import Term, chance, merge
from evolve.tensors.selection import selection, trimmed

if TYPE_CHECKING:
    from collections.abc import Sequence


def trim(delta: torch.Tensor, density: float, *, rescale: bool = False) -> torch.Tensor:
    """The largest magnitudes stay (TIES)."""
    zero = torch.zeros_like(delta)
    keep, scale = trimmed(delta, zero, density, rescale=rescale, table=lambda: selection(delta, zero))
    return merge(None, [Term(delta, 1.0, keep, scale)], dtype=torch.float32)


def drop(delta: torch.Tensor, density: float, seed: int, *, rescale: bool = True) -> torch.Tensor:
    """Entries stay at random (DARE)."""
    keep, scale = chance(density, seed, rescale=rescale)
    return merge(None, [Term(delta, 1.0, keep, scale)], dtype=torch.float32)


def disjoint_sum(deltas: Sequence[torch.Tensor], weights: Sequence[float], *, mean: bool) -> torch.Tensor:
    """What agrees with the elected sign is added up."""
    terms = [Term(delta, weight) for delta, weight in zip(deltas, weights, strict=True)]
    return merge(None, terms, dtype=torch.float32, elect="mean" if mean else "sum")
