"""Between the base and the average, as far as the models agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.stages.merge.base import Inputs, MergeMethod, Param
from evolve.stages.merge.sums import start

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.tensors.rows import Column


class ModelStock(MergeMethod):
    """The base plus t times the average task vector; t follows from the angles between the task vectors.

    With N models and the mean cosine c of their pairs, t = N c / (1 + (N - 1) c); 0 where c is not positive.
    """

    name = "model_stock"
    paper = "Jang et al. 2024, Model Stock, arXiv:2403.19522"
    base = "required"
    models = (2, None)
    shared = (Param("filter_wise", False, kind="bool", doc="A t for each row of a tensor."),)
    stored = True

    @staticmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return base + t * mean of the task vectors."""
        from evolve.tensors.fused import Term, merge

        if inputs.shared["filter_wise"]:
            return _by_row(inputs)
        t = float(inputs.remember("stock", None, lambda: _ratio(_deltas(inputs), whole=True))[0])
        terms = [Term(tensor, 1.0) for tensor in inputs.tensors]
        count = len(terms)
        return merge(start(inputs), terms, dtype=inputs.out, divisor=count, factor=t, sink=inputs.sink)


def _by_row(inputs: Inputs) -> Tensor:
    from evolve.tensors.rows import combine, combine_on_device

    base, deltas = start(inputs), _deltas(inputs)
    ratio = inputs.remember("stock rows", None, lambda: _ratio(deltas, whole=False))
    add = combine if base.device.type == "cpu" else combine_on_device
    shares = [ratio / len(deltas)] * len(deltas)
    return add(deltas, shares, start=base.float(), whole=False).to(inputs.out)


def _deltas(inputs: Inputs) -> list[Tensor]:
    """Return the task vectors, where the models are."""
    base = start(inputs).float()
    return [tensor.float() - base for tensor in inputs.tensors]


def _ratio(deltas: list[Tensor], *, whole: bool) -> Column:
    from evolve.tensors.rows import matrix
    from evolve.tensors.sphere import stock_ratio

    return stock_ratio([matrix(delta.cpu(), whole=whole) for delta in deltas])
