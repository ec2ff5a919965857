"""What the methods that add weighted tensors share: their parameters and the normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from evolve.errors import CandidateError
from evolve.stages.merge.base import Param

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from evolve.stages.merge.base import Inputs, Statistic
    from evolve.tensors.fused import Keep, Term

WEIGHT = Param("weight", None, suggest=(0.0, 1.0), doc="Share of the model, or factor of its task vector.")
DENSITY = Param(
    "density", 1.0, low=0.0, high=1.0, suggest=(0.2, 1.0), doc="Share of the task vector to keep."
)
LAMBDA = Param("lambda", 1.0, suggest=(0.5, 1.5), doc="Factor of the merged task vector.")

# Weights that cancel out to less than this share of their size leave nothing but rounding errors to scale up.
_CANCELLED = 1e-6


def normalize(default: bool) -> Param:
    """Return the parameter that divides by the weights."""
    return Param("normalize", default, kind="bool", doc="Divide by the sum of the weights.")


def rescale(default: bool, doc: str) -> Param:
    """Return the parameter that makes up for what sparsification took away."""
    return Param("rescale", default, kind="bool", doc=doc)


def optional_weight(doc: str) -> Param:
    """Return the weight of a model in a method that needs none: 1 where the config says nothing."""
    return Param("weight", 1.0, low=0.0, suggest=(0.0, 1.0), doc=doc)


def column(inputs: Inputs, name: str) -> list[float]:
    """Return the values of one per-model parameter, in the order of the models."""
    return [float(values[name]) for values in inputs.per_model]


def total(
    inputs: Inputs, weights: Sequence[float], *, mend: str = "change a weight, or set normalize: false"
) -> float:
    """Return the sum of the weights, by which the sum of the tensors can be divided.

    Args:
        inputs: Their name is named in the error.
        weights: One per model.
        mend: What the error says to do.

    Raises:
        CandidateError: They sum to zero, or cancel out but for a millionth.
    """
    result = sum(weights)
    if abs(result) <= _CANCELLED * sum(abs(weight) for weight in weights):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise CandidateError(
            "invalid_recipe",
            f"{inputs.name}: the weights ({listed}) sum to zero and cannot be normalized; {mend}",
        )
    return result


def start(inputs: Inputs) -> Tensor:
    """Return the base, which must be there."""
    if inputs.base is None:
        raise CandidateError("invalid_recipe", f"{inputs.name}: task vectors need a base_model")
    return inputs.base


def terms(inputs: Inputs, kept: Sequence[tuple[Keep, float]] | None = None) -> list[Term]:
    """Return each model with its ``weight``, for a method whose tensors are ``stored``.

    Args:
        inputs: The models.
        kept: For each, what stays of its task vector, and a factor of that; None: everything.
    """
    from evolve.tensors.fused import Everything, Term

    rules = kept or [(Everything(), 1.0)] * len(inputs.tensors)
    return [
        Term(tensor, weight, keep, scale)
        for tensor, weight, (keep, scale) in zip(inputs.tensors, column(inputs, "weight"), rules, strict=True)
    ]


def add_terms(inputs: Inputs, terms: Sequence[Term], *, agreed: bool = False) -> Tensor:
    """Return ``base + lambda * sum(terms)``, for a method whose tensors are ``stored``.

    Args:
        inputs: With ``normalize`` the sum is divided by that of the weights.
        terms: One per model.
        agreed: Add up, in each place, only the terms that have the elected sign.
    """
    return _merged(inputs, terms, start(inputs), inputs.out, agreed)


def add_to_base(inputs: Inputs, deltas: Sequence[Tensor], *, agreed: bool = False) -> Tensor:
    """Return the same as :func:`add_terms`, of task vectors in float32: for a method not ``stored``."""
    import torch

    from evolve.tensors.fused import Term
    from evolve.tensors.interpolate import weighted_sum

    pairs = zip(deltas, column(inputs, "weight"), strict=True)
    merged = _merged(inputs, [Term(delta, weight) for delta, weight in pairs], None, torch.float32, agreed)
    return weighted_sum([merged], [1.0], start=inputs.base)


def _merged(
    inputs: Inputs, terms: Sequence[Term], base: Tensor | None, dtype: torch.dtype, agreed: bool
) -> Tensor:
    from evolve.tensors.fused import merge

    weights, normalized = column(inputs, "weight"), inputs.shared["normalize"]
    elect: Literal["sum", "mean"] | None = None
    divisor = 1.0
    if agreed:
        elect = "mean" if normalized else "sum"
    elif normalized and any(weights):
        divisor = total(inputs, weights)
    return merge(
        base,
        terms,
        dtype=dtype,
        elect=elect,
        divisor=divisor,
        factor=inputs.shared["lambda"],
        sink=inputs.sink,
    )


def task_vectors(inputs: Inputs) -> list[Tensor]:
    """Return each model minus the base: new tensors, which the caller may change."""
    from evolve.tensors.interpolate import difference

    base = start(inputs)
    return [difference(tensor, base) for tensor in inputs.tensors]


def known(inputs: Inputs) -> list[Statistic] | None:
    """Return what is known of the tensor in each model, or None where a model has nothing."""
    found = [one for one in inputs.statistics if one is not None]
    return found if len(found) == len(inputs.tensors) else None


def mean(inputs: Inputs, weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of the models. The weights do not sum to zero."""
    from evolve.tensors.interpolate import weighted_sum

    return weighted_sum(inputs.tensors, weights, divisor=sum(weights))
