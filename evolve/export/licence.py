"""The licence of a model folder, as its own files state it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from evolve.weights.location import parts

UNKNOWN = "not stated"
_LONGEST_README = 1_000_000


def licence_of(place: Path | str) -> str:
    """Return the licence of a parent: a folder, or a base and adapters, each with its own.

    That of a folder stands in the front matter of its README, else its LICENSE file begins with it.
    ``not stated`` where there is neither: the reader of a card must not take silence for permission.
    """
    found = dict.fromkeys(_licence_of(Path(part)) for part in parts(str(place)))
    return UNKNOWN if UNKNOWN in found else ", ".join(found)


def _licence_of(folder: Path) -> str:
    stated = front_matter(folder / "README.md").get("license")
    if isinstance(stated, list):
        stated = ", ".join(str(item) for item in stated)
    if stated:
        return " ".join(str(stated).split())
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"):
        for line in _read(folder / name).splitlines():
            if line.strip(" #*"):
                return f"{' '.join(line.strip(' #*').split())[:100]} (file {name})"
    return UNKNOWN


def front_matter(readme: Path) -> dict[str, Any]:
    """Return the YAML between the first two ``---`` lines of a model card; empty where there is none."""
    head, _, rest = _read(readme).partition("---\n")
    if head.strip():
        return {}
    try:
        found = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_LONGEST_README)
    except OSError:
        return ""
