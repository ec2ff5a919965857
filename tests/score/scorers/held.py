"""A tiny model in the hf engine, and scorers made of a config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.config.schema import ScoreConfig
from evolve.score.scorer import Scorer

if TYPE_CHECKING:
    from evolve.types import TaskScore


def config(*scorers: dict[str, Any], holdout: int = 0, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"backend": "hf", "dtype": "float32", "scorers": list(scorers), "holdout": {"items": holdout}}
        | changes
    )


def score(engine: Any, *scorers: dict[str, Any], split: Any = "search", **more: Any) -> dict[str, TaskScore]:
    return Scorer(config(*scorers, **more)).score(engine, split)
