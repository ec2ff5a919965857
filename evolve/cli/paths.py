"""Paths as they are shown, and as they may be written."""

from __future__ import annotations

from pathlib import Path

from evolve.errors import UserError


def shown(path: Path) -> str:
    """Return a path as short as it may be written in the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def confirm_free(path: Path) -> None:
    """Raise unless ``path`` may be written as a new file."""
    if path.exists():
        raise UserError(f"{path} exists: choose another --out, or delete it first")
