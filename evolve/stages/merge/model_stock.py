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
        from evolve.tensors.rows import combine

        count = len(inputs.tensors)
        if not inputs.shared["filter_wise"]:
            t = float(inputs.remember("stock", None, lambda: _ratio(_deltas(inputs), whole=True))[0])
            terms = [Term(tensor, 1.0) for tensor in inputs.tensors]
            return merge(start(inputs), terms, dtype=inputs.out, divisor=count, factor=t, sink=inputs.sink)
        deltas = _deltas(inputs)
        share = _ratio(deltas, whole=False) / count
        base = start(inputs).to("cpu", deltas[0].dtype)
        return combine(deltas, [share] * count, start=base, whole=False).to(inputs.out)


def _deltas(inputs: Inputs) -> list[Tensor]:
    import torch

    from evolve.tensors.interpolate import difference

    base = start(inputs).to("cpu", torch.float32)
    return [difference(tensor.to("cpu", torch.float32), base) for tensor in inputs.tensors]


def _ratio(deltas: list[Tensor], *, whole: bool) -> Column:
    from evolve.tensors.rows import matrix
    from evolve.tensors.sphere import stock_ratio

    return stock_ratio([matrix(delta, whole=whole) for delta in deltas])
