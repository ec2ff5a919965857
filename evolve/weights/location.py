"""A parent's place: a model's folder, file or hub id, and the adapters that are merged into it.

``models/base+adapters/math`` is a base and one adapter, as mergekit writes it too. A folder whose own name
holds a plus is told apart by looking: what exists as a whole is one part.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolve.types import Parent

PLUS = "+"


def parts(place: str) -> tuple[str, ...]:
    """Split ``base+adapter+...`` into its parts; the longest that exist are taken first."""
    pieces = place.split(PLUS)
    found: list[str] = []
    start = 0
    while start < len(pieces):
        ends = range(len(pieces), start, -1)
        end = next((end for end in ends if _exists(PLUS.join(pieces[start:end]))), start + 1)
        found.append(PLUS.join(pieces[start:end]))
        start = end
    return tuple(found)


def revisions(revision: str | None) -> tuple[str | None, ...]:
    """Split the revision of a parent into those of its parts; None for a folder."""
    return (None,) if revision is None else tuple(part or None for part in revision.split(PLUS))


def join_revisions(found: tuple[str | None, ...]) -> str | None:
    """Return one text for the revisions of a parent's parts, or None where no part has one."""
    return PLUS.join(part or "" for part in found) if any(found) else None


def places(parent: Parent) -> tuple[tuple[str, str | None], ...]:
    """Return each part of a parent as it was written, with its commit, None for what is on this machine.

    Not told apart by looking, as the source may have been written in another working directory.
    """
    count = len(parts(parent.path))
    pieces = parent.source.split(PLUS)
    found = parts(parent.source)
    if len(found) != count:
        found = tuple(pieces) if len(pieces) == count else (parent.source,)
    commits = (*revisions(parent.revision), *(None for _ in found))
    return tuple(zip(found, commits[: len(found)], strict=True))


def pinned(place: str, commit: str | None) -> str:
    """Return one part of a source, at its commit instead of the revision that was written."""
    return place if commit is None else f"{place.partition('@')[0]}@{commit}"


def _exists(place: str) -> bool:
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
