"""Parameter values: their check against a method's declaration, and their value for one tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from evolve.config.values import Choices, Filtered, Parameter, Range, SearchNumber
from evolve.errors import CandidateError
from evolve.tensors.gradient import at_depth

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from evolve.stages.merge.base import Param

Path: TypeAlias = tuple[str | int, ...]
Leaf: TypeAlias = bool | SearchNumber


def _is_filters(value: Parameter) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Filtered)


def filters(value: Parameter) -> list[Filtered]:
    """Return the entries of a list of filters, or none for any other value."""
    return [entry for entry in value if isinstance(entry, Filtered)] if isinstance(value, list) else []


def catches_all(entry: Filtered) -> bool:
    """Whether a filter lets every tensor's name through."""
    return entry.filter in (None, "", "*")


def always(value: Parameter) -> bool:
    """Whether the parameter has a value for every tensor: only a list of filters may have none."""
    entries = filters(value)
    return not entries or any(catches_all(entry) for entry in entries)


def leaves(value: Parameter) -> Iterator[tuple[Path, Leaf, bool]]:
    """Yield ``(path, leaf, whether it is one point of a gradient)`` for each number, range or switch."""
    if not isinstance(value, list):
        yield (), value, False
        return
    for index, entry in enumerate(value):
        if isinstance(entry, Filtered):
            for path, leaf, point in leaves(entry.value):
                yield (index, "value", *path), leaf, point
        else:
            yield (index,), entry, True


def ranges(value: Parameter) -> int:
    """Count the ranges and choices in a value."""
    return sum(isinstance(leaf, Range | Choices) for _, leaf, _ in leaves(value))


def value_problems(param: Param, value: Parameter) -> list[tuple[Path, str]]:
    """Return what is wrong with a value, as ``(path inside the value, message)``."""
    found = list(_unreachable(value))
    for path, leaf, point in leaves(value):
        message = _switch(param, leaf, point) if param.kind == "bool" else _number(param, leaf)
        if message:
            found.append((path, message))
    return found


def _unreachable(value: Parameter) -> Iterator[tuple[Path, str]]:
    caught = False
    for index, entry in enumerate(filters(value)):
        if caught:
            yield (index,), "never used: a filter before it takes all tensors; move it up"
        caught = caught or catches_all(entry)


def _switch(param: Param, leaf: Leaf, point: bool) -> str:
    if point:
        return f"{param.name} is true or false and cannot change over the depth; use filters"
    if isinstance(leaf, Choices):
        values: Sequence[object] = leaf.choices
    else:
        values = [leaf]
    if all(isinstance(value, bool) for value in values):
        return ""
    return f"{param.name} is true or false; to search it write {{choices: [false, true]}}"


def _number(param: Param, leaf: Leaf) -> str:
    if isinstance(leaf, Range):
        if param.kind == "int":
            return f"{param.name} is a whole number; to search it write {{choices: [1, 2, 3]}}"
        return _bounds(param, leaf.ends, "the range")
    values = leaf.choices if isinstance(leaf, Choices) else [leaf]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    whole = param.kind == "float" or all(isinstance(value, int) for value in numbers)
    if len(numbers) < len(values) or not whole:
        return f"{param.name} is a {'number' if param.kind == 'float' else 'whole number'}, got {values}"
    return _bounds(param, numbers, "the value")


def _bounds(param: Param, values: Iterable[float], what: str) -> str:
    low = -math.inf if param.low is None else param.low
    high = math.inf if param.high is None else param.high
    for value in values:
        if not math.isfinite(value):
            return f"{what} must be finite, got {value}"
        if not low <= value <= high:
            if param.high is None:
                return f"{what} must not be below {low:g}, got {value:g}"
            if param.low is None:
                return f"{what} must not be above {high:g}, got {value:g}"
            return f"{what} must lie from {low:g} to {high:g}, got {value:g}"
    return ""


def resolve(value: Parameter, tensor: str, t: float) -> float | bool | None:
    """Return the value for one tensor at depth ``t``, or None where no filter lets its name through.

    Raises:
        CandidateError: There is still a range in it.
    """
    if _is_filters(value):
        for entry in filters(value):
            if catches_all(entry) or (entry.filter or "") in tensor:
                return resolve(entry.value, tensor, t)
        return None
    points = [_fixed(leaf, tensor) for _, leaf, _ in leaves(value)]
    return at_depth(points, t) if isinstance(value, list) else points[0]


def choose(param: Param, sources: Iterable[Parameter | None], tensor: str, t: float) -> float | bool | None:
    """Return the first value that a source has for a tensor, else the default; None: there is none."""
    for source in sources:
        value = None if source is None else resolve(source, tensor, t)
        if value is not None:
            return value
    return param.default


def _fixed(leaf: Leaf, tensor: str) -> float | bool:
    if isinstance(leaf, Range | Choices):
        raise CandidateError(
            "invalid_recipe", f"{tensor}: a range is left in the recipe; every value must be fixed"
        )
    return leaf
