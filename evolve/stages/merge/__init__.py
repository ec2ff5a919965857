"""Model merging: a mergekit config in which any number may be a range."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolve.stages.merge.stage import MergeStage as MergeStage


def __getattr__(name: str) -> object:
    # The methods live in this package too: listing them must not load the stage.
    if name == "MergeStage":
        from evolve.stages.merge.stage import MergeStage

        return MergeStage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
