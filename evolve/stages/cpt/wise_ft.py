"""WiSE-FT: the straight line from the start weights to the trained ones, without training again.

Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evolve.errors import CandidateError
from evolve.types import content_hash

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.weights.model import Model


def interpolated(start: Model, trained: Model, alpha: float) -> Model:
    """Return ``(1 - alpha) * start + alpha * trained``, computed tensor by tensor when it is read.

    Arithmetic is float32, from both ends as they are before their rounding; the result is rounded once, to
    the types of ``trained``, and is at hand unrounded too. At 1 it is ``trained``
    itself. The start of a model with a new vocabulary is the extended one, so its new rows lie on the line
    too.

    Args:
        start: The model before the training.
        trained: After it, with the same tensors.
        alpha: From 0 to 1.

    Raises:
        CandidateError: The two have other tensors, or other shapes.
    """
    if alpha == 1:
        return trained
    shapes = [{name: spec.shape for name, spec in model.specs.items()} for model in (start, trained)]
    if shapes[0] != shapes[1]:
        raise CandidateError("build", "wise_ft: the trained model has other tensors than the start")

    def exact(name: str) -> Tensor:
        from evolve.tensors.interpolate import lerp

        one, other = (end.unrounded(name).float().contiguous() for end in (start, trained))
        return lerp(one.reshape(-1), other.reshape(-1), alpha).reshape(one.shape)

    def tensor(name: str) -> Tensor:
        import torch

        found: Tensor = exact(name).to(getattr(torch, trained.specs[name].dtype))
        return found

    ends = [start.content, trained.content]
    content = f"stage:{content_hash({'wise_ft': alpha, 'ends': ends})}" if all(ends) else ""
    return replace(trained, tensor=tensor, exact=exact, finite=False, content=content)
