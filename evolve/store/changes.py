"""What differs between two configs, one line a value."""

from __future__ import annotations

import json
from typing import Any

_LONGEST = 60
_ABSENT = object()


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line for every value that differs, such as ``search.trials: 100 -> 200``.

    Args:
        old: A JSON object.
        new: Another one; tuples count as lists.

    Returns:
        Lines in the order of ``old``, then what ``new`` adds; empty when both say the same.
    """
    before, after = _leaves(_plain(old), ()), _leaves(_plain(new), ())
    return [
        f"{'.'.join(path)}: {_show(before.get(path, _ABSENT))} -> {_show(after.get(path, _ABSENT))}"
        for path in {**before, **after}
        if not _same(before.get(path, _ABSENT), after.get(path, _ABSENT))
    ]


def _plain(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value))


def _leaves(value: Any, path: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
    """Return path to value; an empty list or object is a value too."""
    if isinstance(value, dict) and (value or not path):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {path: value}
    leaves: dict[tuple[str, ...], Any] = {}
    for key, item in items:
        leaves.update(_leaves(item, (*path, key)))
    return leaves


def _same(left: Any, right: Any) -> bool:
    # bool is a subclass of int: true is not 1 in a config.
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
