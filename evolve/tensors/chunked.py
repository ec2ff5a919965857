"""Sums over tokens of what is computed from logits, without the logits of all tokens at once.

The gradient is computed together with the value, chunk by chunk (as in Liger Kernel, Hsu et al. 2024,
arXiv:2410.10989): autograd runs over the rows of one chunk, and what is kept is the gradient of the inputs.
So the peak is a few copies of (chunk, V) instead of a few copies of (tokens, V), each product with the head
is made once, and a new loss needs no formula for its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from evolve.tensors.logits import Head, Logits

Measure: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(logits of some rows, (n, V); the rows' places, (n,)) to one sum over these rows a term, (terms,)."""

CHUNK_BYTES = 16 << 20
"""Bytes of one float32 copy of a chunk's logits, where the caller says nothing else."""


class Sums(NamedTuple):
    """What was summed.

    Attributes:
        total: Scalar; the terms times their weights. The gradient flows from here.
        terms: (terms,); each term without its weight, and without a gradient.
    """

    total: Tensor
    terms: Tensor


@dataclass(frozen=True)
class _Job:
    source: Logits | Head
    rows: Tensor
    measure: Measure
    weights: Tensor
    vocabulary: int
    chunk: int
    gradient: bool


def chunk_rows(vocabulary: int) -> int:
    """Return how many rows a chunk has by default."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def chunked_sums(
    source: Logits | Head,
    rows: Tensor,
    measure: Measure,
    weights: Tensor,
    *,
    vocabulary: int,
    chunk: int | None = None,
) -> Sums:
    """Return the sums of ``measure`` over the rows, a chunk at a time.

    ``backward`` may run once and gives gradients of the first order, for every tensor of the source that
    requires one. Inside, autocast is off: the arithmetic is float32.

    Args:
        source: Of batch times length rows.
        rows: int64, (n,); places among batch times length, each at most once. May be none: the sums and
            gradients are then zero.
        measure: Differentiable in its first argument.
        weights: float32 or float64, (terms,), on the device of the source, no gradient.
        vocabulary: How many columns count; what is behind is padding.
        chunk: Rows at a time; None: by :data:`CHUNK_BYTES`.
    """
    job = _Job(
        source=source,
        rows=rows,
        measure=measure,
        weights=weights,
        vocabulary=vocabulary,
        chunk=chunk or chunk_rows(vocabulary),
        gradient=torch.is_grad_enabled(),
    )
    apply: Callable[..., tuple[Tensor, Tensor]] = _ChunkedSums.apply
    total, terms = apply(job, *source.tensors)
    return Sums(total, terms)


class _ChunkedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        wanted = job.gradient and any(tensor.requires_grad for tensor in tensors)
        gradients = job.source.gradients() if wanted else []
        terms = torch.zeros_like(job.weights)
        with torch.autocast(job.weights.device.type, enabled=False):
            for start in range(0, len(job.rows), job.chunk):
                rows = job.rows[start : start + job.chunk]
                raw = job.source.raw(rows, job.vocabulary)
                terms += _measured(job, raw, rows, gradients)
        ctx.gradients, ctx.dtypes = gradients, [tensor.dtype for tensor in tensors]
        ctx.mark_non_differentiable(terms)
        return (terms * job.weights).sum(), terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, total: Tensor, _terms: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a chunked sum are given out once; compute the loss again")
        # Given out, not kept: they are as large as the inputs.
        gradients, ctx.gradients = ctx.gradients, None
        if not gradients:
            return (None,) * (1 + len(ctx.dtypes))
        return None, *(
            None if gradient is None else gradient.mul_(total.to(gradient.dtype)).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )


def _measured(job: _Job, raw: Tensor, rows: Tensor, gradients: list[Tensor | None]) -> Tensor:
    """Return the terms of one chunk and add its gradients."""
    if not gradients:
        return job.measure(job.source.finish(raw), rows).to(job.weights.dtype)
    with torch.enable_grad():
        raw.requires_grad_()
        terms = job.measure(job.source.finish(raw), rows).to(job.weights.dtype)
        [found] = torch.autograd.grad((terms * job.weights).sum(), raw)
    job.source.add(gradients, rows, found)
    return terms.detach()
