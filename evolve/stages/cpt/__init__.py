"""Continual pre-training, with replay, regularisers, a curriculum, phases and interpolation back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolve.stages.cpt.stage import CptStage as CptStage


def __getattr__(name: str) -> object:
    # The block is read by those who only check a config: listing stages must not load the stage.
    if name == "CptStage":
        from evolve.stages.cpt.stage import CptStage

        return CptStage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
