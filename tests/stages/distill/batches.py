"""Small random batches for the tests of the losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

from evolve.registry import LOSSES
from evolve.stages.distill.losses.base import TokenLoss
from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals, count_items
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Head, Logits

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.distill.objective import Losses

OVER_VOCABULARY = tuple(name for name in LOSSES.names() if issubclass(LOSSES.load(name), TokenLoss))
DIVERGENCES = tuple(name for name in OVER_VOCABULARY if name != "cross_entropy")
FAMILIES = [{"function": name} for name in OVER_VOCABULARY]


@dataclass
class Batch:
    """float64, for any precision below it."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    vocabulary: int

    @property
    def items(self) -> int:
        return int(count_items(self.labels))


def make_batch(
    seed: int = 0,
    size: tuple[int, int] = (2, 6),
    vocabulary: int = 11,
    padding: tuple[int, int] = (0, 0),
    scale: float = 3.0,
    ignored: float = 0.3,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def drawn(columns: int) -> Tensor:
        return scale * torch.randn(*size, columns, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, vocabulary, size, generator=generator)
    labels[torch.rand(size, generator=generator) < ignored] = -100
    return Batch(drawn(vocabulary + padding[0]), drawn(vocabulary + padding[1]), labels, vocabulary)


def batches() -> st.SearchStrategy[Batch]:
    return st.builds(
        make_batch,
        seed=st.integers(0, 10_000),
        size=st.tuples(st.integers(1, 3), st.integers(1, 6)),
        vocabulary=st.integers(2, 17),
        padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        scale=st.sampled_from([0.1, 1.0, 5.0]),
        ignored=st.sampled_from([0.0, 0.4, 1.0]),
    )


def logits_loss(
    functions: list[dict[str, Any]],
    batch: Batch,
    dtype: torch.dtype = torch.float32,
    *,
    num_items: int | None = None,
    chunk: int | None = None,
) -> tuple[Losses, Tensor]:
    """The loss from logits, and its gradient for those of the student."""
    student = batch.student.clone().to(dtype).requires_grad_()
    found = distillation_loss(
        make_terms(functions),
        Signals(Logits(student)),
        Signals(Logits(batch.teacher.to(dtype))),
        batch.labels,
        num_items=batch.items if num_items is None else num_items,
        vocabulary=batch.vocabulary,
        chunk=chunk,
    )
    found.total.backward()
    assert student.grad is not None
    return found, student.grad


def make_head(
    seed: int,
    size: tuple[int, int],
    vocabulary: int,
    *,
    width: int = 5,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    **options: Any,
) -> Head:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    return Head(drawn(*size, width), drawn(vocabulary, width), drawn(vocabulary) if bias else None, **options)
