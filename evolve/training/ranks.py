"""One training in several processes: which rows are whose, and how their gradients become one.

Every process (rank) holds the whole network and takes its share of the rows of each step. The recipe says how
many rows a step has, so the number of processes decides nothing but the time, and rounding. The group is
torch.distributed's, as accelerate starts it; outside of one, everything here is that of a single process.

Gradients are summed after the backward pass and not by DistributedDataParallel during it: a loss reads the
head's matrix beside the network's own forward pass, a step may take any number of passes, phases let
parameters rest, and a rank may have no row at all. None of these fits its hooks.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

T = TypeVar("T")

_BUCKET = 1 << 24
"""Numbers that travel together, about: 64 MiB in float32."""


def count() -> int:
    """Return the number of processes that train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if count() > 1 else 0


def wait() -> None:
    """Return when all processes have come here."""
    import torch.distributed as dist

    if count() > 1:
        dist.barrier()


def agreed(value: bool) -> bool:
    """Return the value of the first process, in all of them."""
    import torch.distributed as dist

    if count() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in all of them."""
    import torch.distributed as dist

    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Let the first process go ahead of the others."""
    if rank():
        wait()
    try:
        yield
    finally:
        if not rank():
            wait()


def share(batches: Sequence[Sequence[T]]) -> list[list[T]]:
    """Return this process's rows of a step, in as many batches, none larger than the largest.

    Batches without a row come first, so that a rank that has one ends with it.

    Args:
        batches: The rows of the step, the same in every process.
    """
    if count() == 1:
        return [list(batch) for batch in batches]
    largest = max((len(batch) for batch in batches), default=1) or 1
    mine = [row for batch in batches for row in batch][rank() :: count()]
    parts = [mine[begin : begin + largest] for begin in range(0, len(mine), largest)]
    return [[] for _ in range(len(batches) - len(parts))] + parts


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Make the gradient of each parameter the mean over the processes; no gradient counts as zeros.

    One that has no gradient in any process keeps none, so that nothing decays it.
    """
    import torch
    import torch.distributed as dist

    if count() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    has = torch.tensor([float(parameter.grad is not None) for parameter in trained]).to(trained[0].device)
    dist.all_reduce(has, op=dist.ReduceOp.MAX)
    for parameter, anywhere in zip(trained, has.tolist(), strict=True):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
        together = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(together)
        together /= count()
        means = torch.split(together, [gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one type together, up to about a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > _BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
