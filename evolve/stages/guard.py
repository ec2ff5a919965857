"""Guards a model against values that are no numbers, wherever its tensors are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.weights.model import Model


def guarded(model: Model, maker: str, parents: Mapping[str, Model]) -> Model:
    """Return ``model`` with a check on every tensor that is read.

    Args:
        model: Its tensors are computed when they are read.
        maker: The stage that makes them, for messages.
        parents: Name to parent: one that is damaged itself is named.
    """
    if model.finite:
        return model

    def tensor(name: str) -> Tensor:
        from evolve.tensors.fused import all_finite

        value = model.tensor(name)
        if not all_finite(value):
            raise CandidateError("non_finite", _blame(name, value, maker.lstrip("\0"), parents))
        return value

    return replace(model, tensor=tensor, finite=True)


def _blame(name: str, tensor: Tensor, maker: str, parents: Mapping[str, Model]) -> str:
    import torch

    from evolve.tensors.fused import all_finite

    bad = int((~torch.isfinite(tensor.float())).sum())
    what = f"tensor {name}: {bad} of {tensor.numel()} values are NaN or infinite"
    guilty = [
        repr(parent)
        for parent, model in parents.items()
        if name in model.specs and not all_finite(model.tensor(name))
    ]
    if guilty:
        return f"{what}; so are values of this tensor in model {', '.join(guilty)} itself: replace that model"
    return f"{what}, made by {maker} from finite models"
