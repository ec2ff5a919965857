"""The same pass by single operations of torch, on any device. Same order, same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from evolve.tensors.fused.terms import RANKED_STEPS, Chance, Magnitude, RankedChance
from evolve.tensors.random import draws_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.tensors.fused.terms import Keep, Term


def merge_eagerly(
    base: Tensor | None,
    terms: Sequence[Term],
    *,
    dtype: torch.dtype,
    elect: Literal["sum", "mean"] | None,
    divisor: float,
    factor: float,
) -> Tensor:
    """See :func:`evolve.tensors.fused.merge`."""
    start = torch.zeros((), device=terms[0].tensor.device) if base is None else base.float()
    weighted = []
    for term in terms:
        delta = _kept(term.tensor.float() - start, term.keep)
        weighted.append(delta * _single(term.scale * term.weight))
    total = weighted[0].clone()
    for values in weighted[1:]:
        total += values
    if elect is not None:
        total = _elected(weighted, total, [abs(term.weight) for term in terms], mean=elect == "mean")
    return (total / _single(divisor) * _single(factor) + start).to(dtype)


def _single(value: float) -> float:
    """Return the float32 nearest to ``value``; torch rounds a factor only where the kernel is written so."""
    return float(torch.tensor(value, dtype=torch.float32))


def _kept(delta: Tensor, keep: Keep) -> Tensor:
    # Products, so that a NaN or an infinity is not hidden.
    if isinstance(keep, Magnitude):
        size = delta.view(torch.int32) & 0x7FFFFFFF if delta.dim() else _bits_of_scalar(delta)
        tie = (size == keep.threshold).view(-1)
        first = (tie.cumsum(0) <= keep.ties) & tie
        return delta * ((size > keep.threshold) | first.view(size.shape))
    if isinstance(keep, Chance):
        stays = draws_on(delta.device, keep.seed, delta.numel()) < keep.limit
        return delta * stays.view(delta.shape)
    if isinstance(keep, RankedChance):
        line = keep.ranks.to(torch.int32).float() * _single(keep.step) + _single(keep.low)
        limits = line.clamp(0, RANKED_STEPS).round()
        drawn = (draws_on(delta.device, keep.seed, delta.numel()) >> 8).float()
        factors = RANKED_STEPS / limits if keep.rescale else torch.ones_like(limits)
        return delta * torch.where(drawn.view(delta.shape) < limits, factors, 0.0)
    return delta


def _bits_of_scalar(delta: Tensor) -> Tensor:
    return delta.view(1).view(torch.int32).view(()) & 0x7FFFFFFF


def _elected(terms: Sequence[Tensor], total: Tensor, weights: Sequence[float], *, mean: bool) -> Tensor:
    sign = torch.where(total >= 0, 1.0, -1.0)
    result, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for term, weight in zip(terms, weights, strict=True):
        agreeing = term * sign
        agreeing = torch.where(agreeing <= 0, 0.0, agreeing)
        result += agreeing
        divisor += torch.where(agreeing > 0, _single(weight), 0.0)
    if mean:
        result /= torch.where(divisor == 0, 1.0, divisor)
    return result * sign
