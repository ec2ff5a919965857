"""Special token ids in config.json and generation_config.json, when a model gets another vocabulary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evolve.weights.files import contents, parse_json, read_content, with_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from evolve.weights.files import Files

_GENERATION = "generation_config.json"
_KEY = "_token_id"


def moved_ids(
    config: Mapping[str, Any], move: Callable[[int], int | None], fallback: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a config whose ids (bos, eos, pad and so on; lists too) are those of the same tokens elsewhere.

    Args:
        config: The content of config.json.
        move: Returns the new id of an old one, or None where the new vocabulary lacks its token.
        fallback: A config in new ids, asked where nothing is left of a value.
    """
    result = dict(config)
    for key, value in config.items():
        if key.endswith(_KEY) and value is not None:
            result[key] = _moved(value, move)
            if result[key] is None:
                result[key] = _moved(fallback.get(key), lambda number: number)
    return result


def within(size: int) -> Callable[[int], int | None]:
    """Return the move that keeps ids below ``size``, and drops all others."""
    return lambda number: number if number < size else None


def with_generation_ids(files: Files, move: Callable[[int], int | None]) -> Files:
    """Return side files whose generation_config.json has moved ids.

    Raises:
        ModelError: The file is damaged.
    """
    content = contents(files).get(_GENERATION)
    if content is None:
        return files
    data = parse_json(read_content(content), _GENERATION if isinstance(content, bytes) else content)
    result = moved_ids(data, move, {})
    if result == data:
        return files
    return with_changes(files, {_GENERATION: json.dumps(result, indent=2).encode() + b"\n"})


def _moved(value: Any, move: Callable[[int], int | None]) -> Any:
    """Return an id or a list of ids after the move; None where none is left."""
    listed = value if isinstance(value, list) else [value]
    # Files hold -1 and larger numbers for "none" too.
    numbers = [number for number in listed if isinstance(number, int) and 0 <= number < 1 << 31]
    kept = [new for number in numbers if (new := move(number)) is not None]
    if not kept:
        return None
    return kept if isinstance(value, list) else kept[0]
