"""What of a network is trained when, and how fast: phases, unfreezing and layer-wise rates together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from evolve.training.phases import (
    EMBEDDINGS,
    Phase,
    Unfreezing,
    layer_of,
    matches,
    moves,
    phase_at,
    thawed,
)
from evolve.training.trainer import Control

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.training.arguments import TrainingArgs


def control_of(
    network: Any, arguments: TrainingArgs, phases: Sequence[Phase] = (), new_rows: range = range(0)
) -> Control:
    """Return what decides on every parameter in every step.

    A parameter is trained where its phase and the unfreezing both say so; the factors of its rate are
    multiplied. Names are those of the network without an adapter.

    Args:
        network: What is trained, perhaps with an adapter.
        arguments: With every value fixed.
        phases: In order; empty: one that trains everything.
        new_rows: Rows of the tables that a phase of ``new_embeddings`` trains; not empty where there is one.
    """
    decay = float(cast("float", arguments.layerwise_lr_decay))
    unfreezing = _unfreezing(arguments)
    if not phases and decay == 1 and unfreezing is None:
        return Control()
    shapes = {_own(name): tuple(parameter.shape) for name, parameter in network.named_parameters()}
    layers = 1 + max((layer for name in shapes if (layer := layer_of(name)) is not None), default=-1)
    size = len(network.get_input_embeddings().weight)

    def is_table(name: str) -> bool:
        return shapes[name][:1] == (size,) and any(matches(part, name) for part in EMBEDDINGS)

    def rate(progress: float, name: str) -> float:
        own = _own(name)
        found = moves(phase_at(phases, progress), own, decay, layers)
        if found.new_rows and not is_table(own):
            return 0.0
        if unfreezing is not None and not thawed(own, progress, unfreezing, layers):
            return 0.0
        return found.rate

    def rows(progress: float, name: str) -> range | None:
        new = phase_at(phases, progress).train == "new_embeddings"
        return new_rows if new and is_table(_own(name)) else None

    return Control(rate, rows)


def _unfreezing(arguments: TrainingArgs) -> Unfreezing | None:
    block = arguments.gradual_unfreezing
    if block is None or block.groups == 1:
        return None
    return Unfreezing(int(cast("int", block.groups)), float(cast("float", block.until)))


def _own(name: str) -> str:
    """Return the name of a parameter without what an adapter wraps around it."""
    return name.removeprefix("base_model.model.")
