"""Which files of a model's folder matter: weights, config, and the side files beside them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "README.md"
RECIPE = "evolve_recipe.yaml"
"""The recipe inside a model folder that was built."""

# Tokenizer, chat template and generation settings. Never code, weights or model cards.
SIDE_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


@dataclass(frozen=True)
class SideFiles:
    """The side files of a folder, some of them changed in memory: nothing is written before a model is.

    Attributes:
        folder: Where the unchanged files are.
        changed: ``(relative name, content)``, sorted by name; None: the file is left out.
    """

    folder: Path
    changed: tuple[tuple[str, bytes | None], ...]


Files: TypeAlias = Path | SideFiles
"""Where a model's side files are: a folder, or one with changes."""


def folder_of(files: Files) -> Path:
    """Return the folder that side files come from, for messages."""
    return files.folder if isinstance(files, SideFiles) else files


def with_changes(files: Files, changes: Mapping[str, bytes | None]) -> Files:
    """Return ``files`` with some contents replaced, added, or (None) left out."""
    if not changes:
        return files
    folder, before = (files.folder, dict(files.changed)) if isinstance(files, SideFiles) else (files, {})
    return SideFiles(folder, tuple(sorted({**before, **changes}.items())))


def side_files(folder: Path) -> list[Path]:
    """Return the tokenizer and other side files of ``folder``, sorted by relative name."""
    found = {path for pattern in SIDE_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def unknown_entries(folder: Path) -> list[str]:
    """Return the names in a model's folder that are no part of a model as evolve writes it, sorted."""
    known = {path.relative_to(folder).parts[0] for path in side_files(folder)}
    known |= {CONFIG, INDEX, CARD, RECIPE} | {path.name for path in folder.glob("*.safetensors")}
    return sorted({path.name for path in folder.iterdir()} - known)


def contents(files: Files) -> dict[str, Path | bytes]:
    """Return relative name to a file, or to the content of one that is only in memory, sorted by name."""
    folder = folder_of(files)
    found: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in side_files(folder)
    }
    for name, content in files.changed if isinstance(files, SideFiles) else ():
        found.pop(name, None)
        if content is not None:
            found[name] = content
    return dict(sorted(found.items()))


def read_side_files(files: Files) -> dict[str, bytes]:
    """Return relative name to content of all side files.

    Raises:
        ModelError: A file cannot be read.
    """
    return {name: read_content(content) for name, content in contents(files).items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: The file cannot be read or holds something else.
    """
    return parse_json(read_content(path), path)


def parse_json(raw: bytes, where: Path | str) -> dict[str, Any]:
    """Return the JSON object that ``raw`` holds.

    Raises:
        ModelError: It holds something else; ``where`` names it.
    """
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{where} is not valid JSON ({error}). Copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where} must hold a JSON object, not a {type(value).__name__}")
    return value


def cache_folder(name: str) -> Path:
    """Return a folder of the user's cache; it need not exist.

    Raises:
        RuntimeError: The user has no home folder, and ``XDG_CACHE_HOME`` is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "evolve" / name


def read_content(content: Path | bytes) -> bytes:
    """Return the content of an entry of :func:`contents`.

    Raises:
        ModelError: The file cannot be read.
    """
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise ModelError(f"{content} cannot be read: {error.strerror}") from error
