"""The data files that a config names: their content becomes part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from evolve.config.plain import plain
from evolve.config.values import DataFile
from evolve.errors import ConfigError, ModelError
from evolve.weights.content import data_content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.config.load import Loaded
    from evolve.config.yaml import Path

AnyBlock = TypeVar("AnyBlock", bound=BaseModel)


def files(value: Any, path: Path = ()) -> Iterator[tuple[Path, DataFile]]:
    """Yield every data file inside a block with its path, in the order of the schema."""
    # A key that takes a file or something else has no path where there is none.
    if isinstance(value, DataFile) and value.path:
        yield path, value
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from files(getattr(value, key), (*path, key))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from files(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from files(item, (*path, index))


def pinned(loaded: Loaded) -> Loaded:
    """Return the config with the content of every data file filled in.

    Raises:
        ConfigError: A file cannot be read, or holds something else than the config says.
    """
    problems = []
    stages = []
    for index, (kind, block) in enumerate(loaded.stages):
        found, wrong = pinned_block(block)
        stages.append((kind, found))
        problems += [loaded.problem(("pipeline", index, kind, *path), message) for path, message in wrong]
    if problems:
        raise ConfigError(problems)
    if tuple(stages) == loaded.stages:
        return loaded
    pipeline = [{kind: plain(block)} for kind, block in stages]
    config = loaded.config.model_copy(update={"pipeline": pipeline})
    return replace(loaded, config=config, stages=tuple(stages))


def pinned_block(block: AnyBlock) -> tuple[AnyBlock, list[tuple[Path, str]]]:
    """Return a block with the content of its files filled in, and ``(path, message)`` of what is wrong."""
    data: dict[str, Any] | None = None
    problems: list[tuple[Path, str]] = []
    for path, file in files(block):
        try:
            content = data_content(file.path)
        except ModelError as error:
            problems.append(((*path, "path"), str(error)))
            continue
        if file.content not in (None, content):
            message = f"{file.path} holds {content}: bring back the file that was meant, or remove content"
            problems.append(((*path, "content"), message))
        elif file.content is None:
            data = plain(block) if data is None else data
            place: Any = data
            for key in path:
                place = place[key]
            place["content"] = content
    return (block if data is None else type(block).model_validate(data)), problems


def located(value: Any, folder: File) -> Any:
    """Return plain data in which the paths of data files are absolute.

    Args:
        value: Plain data of a recipe: a data file is a mapping with ``path`` and ``content``.
        folder: What the paths are relative to.
    """
    if isinstance(value, list):
        return [located(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    inside = {key: located(item, folder) for key, item in value.items()}
    if isinstance(value.get("path"), str) and isinstance(value.get("content"), str):
        inside["path"] = str((folder / File(value["path"]).expanduser()).absolute())
    return inside
