"""A parent's place: a model's folder, file or hub id, and the adapters that are merged into it.

``models/base+adapters/math`` is a base and one adapter, as mergekit writes it too. A folder whose own name
holds a plus is told apart by looking: what exists as a whole is one part.
"""

from __future__ import annotations

from pathlib import Path

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


def _exists(place: str) -> bool:
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
