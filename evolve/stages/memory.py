"""How much memory a training takes, by what its block says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolve.config.values import StageBlock
    from evolve.weights.model import Model

TRAINED_BYTES = 16
"""Of a parameter that is trained: itself, its gradient and two moments, 4 bytes each."""


def least_bytes(block: StageBlock) -> int:
    """Return the bytes of a parameter that a training surely takes: where some rest, the weights alone.

    Args:
        block: Of a stage that trains, with all values fixed.
    """
    arguments = getattr(block, "training_args", None)
    rests = [getattr(block, key, None) for key in ("peft_config", "frozen_res", "phases")]
    if arguments is None or any(rests) or arguments.gradual_unfreezing is not None:
        return TRAINED_BYTES // 4
    return TRAINED_BYTES if arguments.optim.startswith("adamw") else TRAINED_BYTES // 2


def numbers(model: Model) -> int:
    """Count a model's parameters, those that equal others by construction left out."""
    return sum(spec.numel for name, spec in model.specs.items() if name not in model.same)
