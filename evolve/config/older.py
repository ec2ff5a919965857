"""Configs of runs that an older evolve made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.config.schema import EngineConfig, ScoreConfig, SearchConfig

if TYPE_CHECKING:
    from pydantic import BaseModel


def completed(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the identity of a run with the keys that the schema has got since then, at their defaults."""
    blocks: dict[str, type[BaseModel]] = {
        "score": ScoreConfig,
        "search": SearchConfig,
        "engine": EngineConfig,
    }
    known = {key: schema for key, schema in blocks.items() if isinstance(identity.get(key), dict)}
    try:
        filled = {
            key: schema.model_validate(identity[key]).model_dump(mode="json") for key, schema in known.items()
        }
    except ValueError:  # a key that the schema has no more; the difference shows it
        return identity
    return {**identity, **filled}
