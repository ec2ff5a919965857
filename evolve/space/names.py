"""Readable, unique and stable names for the genes of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.config.values import StageBlock
    from evolve.config.yaml import Path

_SILENT = frozenset({"models", "parameters", "value", "sources", "slices", "modules"})
"""Keys that say nothing to a reader of a gene's name."""
_TELLING = ("model", "filter", "function")
"""Keys by whose value an entry of a list is known."""


def prefixes(stages: Sequence[tuple[str, StageBlock]]) -> list[str]:
    """Return one prefix per stage: its name, else its kind, numbered from the second on."""
    taken = {block.name for _, block in stages if block.name}
    found = []
    for kind, block in stages:
        if block.name:
            found.append(block.name)
            continue
        prefix, count = kind, 2
        while prefix in taken:
            prefix, count = f"{kind}{count}", count + 1
        taken.add(prefix)
        found.append(prefix)
    return found


def label(block: BaseModel, path: Path) -> str:
    """Return the readable form of a path inside a block, such as ``math.weight.self_attn``."""
    words: list[str] = []
    here: Any = block
    for part in path:
        if isinstance(part, int):
            words.append(_entry(here, part))
            here = here[part]
        else:
            if part not in _SILENT or isinstance(here, dict):
                words.append(part)
            here = here[part] if isinstance(here, dict) else _field(here, part)
    return ".".join(words)


def _field(block: BaseModel, key: str) -> Any:
    for name, field in type(block).model_fields.items():
        if key in {name, field.alias}:
            return getattr(block, name)
    raise KeyError(key)


def _entry(entries: Sequence[Any], index: int) -> str:
    words = [_word(entry) for entry in entries]
    word = words[index]
    if word is None:
        return f"{_kind(entries[index])}{index}"
    return word if words.count(word) == 1 else f"{word}.{index}"


def _kind(entry: Any) -> str:
    """Return what a position is one of: only entries that may have a word of their own need to say so."""
    return type(entry).__name__.lower() if hasattr(type(entry), "word") else ""


def _word(entry: Any) -> str | None:
    """Return what an entry of a list is known by, or None for its position."""
    if isinstance(word := getattr(entry, "word", None), str):
        return word
    for key in _TELLING:
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            return str(entry[key])
        if isinstance(entry, BaseModel) and key in type(entry).model_fields:
            word = getattr(entry, key)
            if isinstance(word, str):
                return "rest" if key == "filter" and word in {"", "*"} else word
            if key == "filter" and word is None:
                return "rest"
    return None


def unique(short: Sequence[str], full: Sequence[str]) -> list[str]:
    """Return the short names, and the full one wherever a short one is not alone."""
    counts: dict[str, int] = {}
    for name in short:
        counts[name] = counts.get(name, 0) + 1
    long = set(full)
    return [
        whole if counts[name] > 1 or (name in long and name != whole) else name
        for name, whole in zip(short, full, strict=True)
    ]
