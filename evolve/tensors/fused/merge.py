"""The choice between the compiled pass and the one in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from evolve.tensors.fused.buffers import Buffers
from evolve.tensors.fused.eager import merge_eagerly
from evolve.tensors.fused.terms import RANKED_STEPS, Chance, Everything, Magnitude, RankedChance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.tensors.fused.terms import Keep, Term

Elect: TypeAlias = Literal["sum", "mean"]

_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""The numbers that the kernel has for the types."""
_NO_INTS = np.zeros(1, np.int32)
_NO_LONGS = np.zeros(1, np.int64)
_NO_SEEDS = np.zeros(1, np.uint64)


@dataclass
class Sink:
    """Where a compiled pass writes one result, and what it says of it.

    Attributes:
        buffers: Where memory for the result comes from; None: from the system.
        target: A tensor that the result is written to if it can be, such as an engine's. Where its type is
            another, the result in its own type is widened, or rounded once more.
        result: What was written last, if a pass wrote here.
        finite: Whether it has no NaN and no infinity, before the rounding to the target's type.
    """

    buffers: Buffers | None = None
    target: Tensor | None = None
    result: Tensor | None = None
    finite: bool = False

    def place(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return memory for a result."""
        target = self.target
        fits = target is not None and _compiled(target) and target.is_contiguous() and target.shape == shape
        if target is not None and fits:
            return target
        return (self.buffers or Buffers(0)).empty(shape, dtype)


def merge(
    base: Tensor | None,
    terms: Sequence[Term],
    *,
    dtype: torch.dtype,
    elect: Elect | None = None,
    divisor: float = 1.0,
    factor: float = 1.0,
    sink: Sink | None = None,
) -> Tensor:
    """Return ``base + factor * sum / divisor``, the sum over ``(scale * weight) * kept(tensor - base)``.

    All arithmetic is float32, in the order of ``terms``, with one rounding at the end. A NaN or an infinity
    in a tensor comes out as one or the other.

    Args:
        base: What task vectors start from; None: the terms are whole tensors, and nothing is added.
        terms: At least one; all of the shape of the base, on one device.
        dtype: Of the result: float32, bfloat16 or float16.
        elect: Add up only the terms that have the elected sign: that of the sum of all terms, plus for zero
            (TIES; Yadav et al. 2023, arXiv:2306.01708). ``mean`` divides by the sum of the magnitudes of the
            weights that took part, so that the result is never larger than the largest term.
        divisor: Not zero.
        factor: Lambda.
        sink: Where a result on the CPU goes; None: into new memory.
    """
    tensors = [term.tensor for term in terms] + ([] if base is None else [base])
    rule = _rule(terms) if dtype in _TYPES and all(map(_compiled, tensors)) else None
    if rule is None:
        return merge_eagerly(base, terms, dtype=dtype, elect=elect, divisor=divisor, factor=factor)
    sink = sink or Sink()
    out = sink.place(tensors[0].shape, dtype)
    sink.finite = merge_compiled(
        base, terms, out, rule=rule, dtype=dtype, elect=elect, divisor=divisor, factor=factor
    )
    sink.result = out
    return out


def _compiled(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _TYPES


def _rule(terms: Sequence[Term]) -> type[Keep] | None:
    """Return the one rule of terms that do not all stay whole; None where the compiled pass has none."""
    rules = {type(term.keep) for term in terms} - {Everything}
    if len(rules) > 1:
        return None
    rule = rules.pop() if rules else Everything
    ranked = [term.keep for term in terms if isinstance(term.keep, RankedChance)]
    # Ranks of more than 16 bits the compiled pass does not read.
    if any(keep.ranks.dtype != torch.uint16 for keep in ranked) or len({keep.rescale for keep in ranked}) > 1:
        return None
    return rule


def merge_compiled(
    base: Tensor | None,
    terms: Sequence[Term],
    out: Tensor,
    *,
    rule: type[Keep],
    dtype: torch.dtype,
    elect: Elect | None = None,
    divisor: float = 1.0,
    factor: float = 1.0,
) -> bool:
    """Write to ``out``, contiguous and of any of the types, what :func:`merge` returns in ``dtype``.

    Returns:
        Whether that has no NaN and no infinity.
    """
    from evolve.tensors.fused import kernel

    types = {term.tensor.dtype for term in terms} | ({base.dtype} if base is not None else set())
    source = types.pop() if len(types) == 1 else torch.float32
    # Kept in a list: the kernel has their addresses only.
    tensors = [_plain(term.tensor, source) for term in terms]
    start = None if base is None else _plain(base, source)
    ranks = [term.keep.ranks for term in terms if isinstance(term.keep, RankedChance)]
    ranks = [each.contiguous() for each in ranks]
    state, seeds, left = _state(rule, terms)
    kind = kernel.Kind(
        rule=_number(rule, terms),
        elect=_ELECT[elect],
        based=base is not None,
        divided=divisor != 1,
        source=_TYPES[source],
        rounded=_TYPES[dtype],
        stored=_TYPES[out.dtype],
    )
    finite = kernel.compiled(kind)(
        out.numel(),
        0 if start is None else start.data_ptr(),
        tuple([tensor.data_ptr() for tensor in tensors]),
        _addresses(terms, ranks),
        tuple([float(term.scale * term.weight) for term in terms]),
        tuple([float(term.weight) for term in terms]),
        state,
        seeds,
        left,
        float(divisor),
        float(factor),
        out.data_ptr(),
    )
    return bool(finite)


_RULES = {Everything: 0, Magnitude: 1, Chance: 2, RankedChance: 3}
_ELECT = {None: 0, "sum": 1, "mean": 2}


def _number(rule: type[Keep], terms: Sequence[Term]) -> int:
    """Return the number that the kernel has for a rule; ranked ones that rescale have the next."""
    return _RULES[rule] + any(isinstance(term.keep, RankedChance) and term.keep.rescale for term in terms)


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _addresses(terms: Sequence[Term], ranks: Sequence[Tensor]) -> tuple[int, ...]:
    """Return where each term's ranks are; of one without ranks any that are long enough."""
    places = [each.data_ptr() for each in ranks]
    if len(places) in {0, len(terms)}:
        return tuple(places)
    own = iter(places)
    return tuple([next(own) if isinstance(term.keep, RankedChance) else places[0] for term in terms])


def _state(rule: type[Keep], terms: Sequence[Term]) -> tuple[Any, Any, Any]:
    """Return what the kernel reads of the rules, and writes to: its state, seeds, and ties that are left."""
    keeps = [term.keep for term in terms]
    if rule is Everything:
        return _NO_INTS, _NO_SEEDS, _NO_LONGS
    if rule is Magnitude:
        thresholds = [keep.threshold if isinstance(keep, Magnitude) else -1 for keep in keeps]
        left = [keep.ties if isinstance(keep, Magnitude) else 0 for keep in keeps]
        # Counted is what equals the threshold; below 0 there is nothing to count.
        return np.array(thresholds * 2, np.int32), _NO_SEEDS, np.array(left, np.int64)
    seeds = [getattr(keep, "seed", 0) for keep in keeps]
    keys = [0] * 3 * len(keeps)
    last = [(keep.limit if isinstance(keep, Chance) else 1 << 32) - 1 for keep in keeps]
    state = np.array(keys + last, np.uint32)
    if rule is RankedChance:
        # Of a model that stays whole all words are below the limit, which is also the factor's divisor.
        lows = [keep.low if isinstance(keep, RankedChance) else RANKED_STEPS for keep in keeps]
        steps = [keep.step if isinstance(keep, RankedChance) else 0.0 for keep in keeps]
        state = np.concatenate([state, np.array(lows + steps, np.float32).view(np.uint32)])
    return state.view(np.int32), np.array(seeds, np.uint64), _NO_LONGS
