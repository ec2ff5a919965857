"""What pydantic finds wrong, in plain words: what was given, and what would be right."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from evolve.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

    from evolve.config.yaml import Path


MOST_COMPLAINTS = 200
"""Most problems that one block reports: nobody reads more, and suggestions cost time."""


class Complaint(NamedTuple):
    """One thing that is wrong with a plain value.

    Attributes:
        path: Where; for a missing key the path that it would have.
        message: What is wrong, and what would be right.
        at_key: Whether to show the position of the key rather than that of the value.
    """

    path: Path
    message: str
    at_key: bool = False


def complaints(schema: type[BaseModel], data: Any) -> list[Complaint]:
    """Return everything that is wrong with ``data``; empty where ``schema`` accepts it.

    Checks of a whole block, such as low < high, run only where its keys are right. Unknown keys do not hinder
    them: the data is checked once more without those.
    """
    details = _errors(schema, data)
    unknown = [_real_path(data, detail["loc"]) for detail in details if detail["type"] == "extra_forbidden"]
    if unknown:
        details += _errors(schema, _without(data, unknown))
    details = _one_per_union(data, details)
    found = (_complaint(schema, data, detail) for detail in details[:MOST_COMPLAINTS])
    distinct = list({(one.path, one.message): one for one in found}.values())
    if len(details) > MOST_COMPLAINTS:
        distinct.append(Complaint((), f"and more: only the first {MOST_COMPLAINTS} problems are shown"))
    return distinct


def _errors(schema: type[BaseModel], data: Any) -> list[ErrorDetails]:
    try:
        schema.model_validate(data)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    return []


def _one_per_union(data: Any, details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Join what the members of a union say of one value: expected this or that."""
    joined: dict[Path, ErrorDetails] = {}
    rest: list[ErrorDetails] = []
    for detail in details:
        if detail["type"] not in _EXPECTED:
            rest.append(detail)
            continue
        path = _real_path(data, detail["loc"])
        first = joined.setdefault(path, {**detail, "ctx": {"expected": {}}})
        first["ctx"]["expected"][_EXPECTED[detail["type"]]] = None
    return [*joined.values(), *rest]


def _complaint(schema: type[BaseModel], data: Any, detail: ErrorDetails) -> Complaint:
    loc, kind = detail["loc"], detail["type"]
    if kind == "missing":
        path = (*_real_path(data, loc[:-1]), loc[-1])
        known = _fields(schema, loc[:-1])
        doc = _first_sentence(known.get(str(loc[-1]), ""))
        return Complaint(path, f"missing: this key is needed{doc}")
    path = _real_path(data, loc)
    if loc and loc[-1] == "[key]":
        return Complaint(path, f"the key {_words(detail, loc[-2])}", True)
    if kind == "extra_forbidden":
        fields = _fields(schema, loc[:-1])
        # A key that is there already is hardly the one that was meant.
        hint = did_you_mean(str(loc[-1]), set(fields) - set(_lookup(data, path[:-1])))
        if "did you mean" not in hint:
            hint = did_you_mean(str(loc[-1]), fields)
        return Complaint(path, f"unknown key{hint}", True)
    return Complaint(path, _words(detail, _lookup(data, path)))


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "none_required": "nothing",
}


def _words(detail: ErrorDetails, given: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "wrong_shape":
        return f"{detail['msg']}, got {describe(given)}{_mend(given)}"
    if kind in _EXPECTED:
        expected = [words for words in context["expected"] if words != "nothing"]
        if "a number" in expected:
            expected = [words for words in expected if words != "a whole number"]
        return f"expected {' or '.join(expected)}, got {describe(given)}{_mend(given, kind)}"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    if kind == "literal_error":
        return _literal(str(context["expected"]), given)
    return _bounds(kind, context, given) or f"{detail['msg']}, got {describe(given)}"


def _bounds(kind: str, context: Mapping[str, Any], given: Any) -> str | None:
    signs = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    if kind in signs:
        sign = signs[kind]
        return f"must be {words[sign]} {context[sign]:g}, got {describe(given)}"
    if kind == "finite_number":
        return f"must be a finite number, got {describe(given)}"
    many = "characters" if isinstance(given, str) else "entries"
    if kind in {"too_short", "string_too_short"}:
        least = context["min_length"]
        if least == 1:
            return "must not be empty"
        return f"needs at least {least} {many}, got {len(given)}"
    if kind in {"too_long", "string_too_long"}:
        return f"takes at most {context['max_length']} {many}, got {len(given)}"
    return None


def _literal(expected: str, given: Any) -> str:
    options = [option.strip("'") for option in expected.replace(" or ", ", ").split(", ")]
    near = did_you_mean(given, options) if isinstance(given, str) else ""
    hint = near if "did you mean" in near else ""
    return f"expected {expected}, got {describe(given)}{hint}"


def _mend(given: Any, kind: str = "") -> str:
    """Return the mend for text that only looks like a number or a boolean."""
    if not isinstance(given, str):
        return ""
    if kind in {"", "bool_type"} and given.lower() in {"yes", "on", "no", "off", "true", "false"}:
        return f": write {'true' if given.lower() in {'yes', 'on', 'true'} else 'false'}, without quotes"
    try:
        float(given.replace("_", ""))
    except ValueError:
        return ""
    return "" if kind in {"list_type", "dict_type", "model_type"} else ": write it without quotes"


def describe(value: Any) -> str:
    """Return a short description of a value for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return f"the text {short!r}"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else f"a list of {len(value)}"
    if isinstance(value, dict):
        keys = ", ".join(list(map(str, value))[:3])
        return f"a mapping ({keys}{', ...' if len(value) > 3 else ''})" if value else "an empty mapping"
    return type(value).__name__


def _real_path(data: Any, loc: tuple[int | str, ...]) -> Path:
    """Drop from pydantic's location the parts that are no part of the data, such as tags of unions."""
    path: list[str | int] = []
    for part in loc:
        in_dict = isinstance(data, dict) and part in data
        if in_dict or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            path.append(part)
    return tuple(path)


def _lookup(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _without(data: Any, paths: list[Path]) -> Any:
    """Return a copy of ``data`` without the values at ``paths``."""
    if not paths:
        return data
    heads: dict[str | int, list[Path]] = {}
    for path in paths:
        heads.setdefault(path[0], []).append(path[1:])
    if isinstance(data, dict):
        return {
            key: _without(item, heads.get(key, []))
            for key, item in data.items()
            if () not in heads.get(key, [])
        }
    return [_without(item, heads.get(index, [])) for index, item in enumerate(data)]


def _fields(schema: Any, loc: tuple[int | str, ...]) -> dict[str, str]:
    """Return key to description of the blocks that a location may stand for."""
    kinds = [schema]
    for part in loc:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)] or kinds
    return {
        field.alias or name: field.description or ""
        for kind in kinds
        for block in _blocks(kind)
        for name, field in block.model_fields.items()
    }


def _inside(kind: Any, part: int | str) -> Iterator[Any]:
    for block in _blocks(kind):
        for name, field in block.model_fields.items():
            if part in {name, field.alias}:
                yield field.annotation
    for member in _members(kind):
        origin = get_origin(member)
        if (origin is list and isinstance(part, int)) or (origin is tuple and isinstance(part, int)):
            yield get_args(member)[0]
        elif origin is dict and isinstance(part, str):
            yield get_args(member)[1]


def _members(kind: Any) -> Iterator[Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _members(get_args(kind)[0])
    elif origin in {Union, types.UnionType}:
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _blocks(kind: Any) -> Iterator[type[BaseModel]]:
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member


def _first_sentence(doc: str) -> str:
    sentence = " ".join(doc.split(". ")[0].split()).rstrip(".").replace("``", "`")
    return f" ({sentence})" if sentence else ""
