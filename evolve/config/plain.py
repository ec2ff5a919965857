"""A checked block as plain data: mappings, lists, text, numbers, booleans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from evolve.config.values import Choices, Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from evolve.config.yaml import Path


def plain(
    value: Any,
    *,
    fill: Callable[[Path, Range | Choices], Any] | None = None,
    defaults: bool = True,
    path: Path = (),
) -> Any:
    """Return ``value`` as plain data that the same schema accepts again.

    Args:
        value: A block, or anything inside one.
        fill: Returns the value of the range at a path; without it ranges stay ranges, in their short form.
        defaults: Whether keys that have their default value are written. None is never written.
        path: Where ``value`` stands, for ``fill``.
    """
    if isinstance(value, Range | Choices):
        return fill(path, value) if fill else value.model_dump(exclude_defaults=True)
    if isinstance(value, BaseModel):
        data = {}
        for key, item, default in _items(value):
            if item is None:
                continue
            data[key] = plain(item, fill=fill, defaults=defaults, path=(*path, key))
            # Compared when filled in: a range that happens to give the default gives the same recipe.
            if not defaults and data[key] == plain(default, defaults=False):
                del data[key]
        return data
    if isinstance(value, dict):
        return {
            str(key): plain(item, fill=fill, defaults=defaults, path=(*path, str(key)))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            plain(item, fill=fill, defaults=defaults, path=(*path, index)) for index, item in enumerate(value)
        ]
    return value if value is None else to_jsonable_python(value)


def ranges(value: Any, path: Path = ()) -> Iterator[tuple[Path, Range | Choices]]:
    """Yield every range and choice inside a block with its path, in the order of the schema."""
    if isinstance(value, Range | Choices):
        yield path, value
    elif isinstance(value, BaseModel):
        for key, item, _ in _items(value):
            yield from ranges(item, (*path, key))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ranges(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from ranges(item, (*path, index))


def _items(block: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    for name, field in type(block).model_fields.items():
        if not field.exclude:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            yield field.alias or name, getattr(block, name), default
