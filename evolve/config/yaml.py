"""YAML to a tree that knows the line and column of every key and value.

The tree is built from PyYAML's events (libyaml's where PyYAML has it), not by ``yaml.load``: nothing is
ever made but text, numbers, booleans, null, lists and mappings; nesting and aliases are bounded; duplicate
keys are found. Plain scalars follow the YAML 1.2 core schema: ``1e-4`` and ``4_000_000`` are numbers, only
``true`` and ``false`` are booleans (``yes``, ``no``, ``on``, ``off`` are text), and there are no dates.
"""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Path: TypeAlias = "tuple[str | int, ...]"
Scalar: TypeAlias = "str | int | float | bool | None"

MOST_NESTING = 100
"""Deepest nesting. A config needs about ten; a parser's stack ends somewhere above."""
MOST_ALIASED = 100_000
"""Most values that aliases may add to a file: more is a bomb."""
MOST_BYTES = 1_000_000 if yaml.__with_libyaml__ else 100_000
"""Largest file: a few seconds of parsing. Without libyaml PyYAML is more than ten times slower."""

_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_TAG = "tag:yaml.org,2002:"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Place(NamedTuple):
    """Where a key or a value stands: line and column counted from 1, or the text of an override."""

    line: int
    column: int
    override: str = ""


class Entry(NamedTuple):
    """One key of a mapping: where the key stands, and its value."""

    place: Place
    node: Node


@dataclass(slots=True)
class Node:
    """A value in the tree.

    Attributes:
        value: A scalar, a list of nodes, or a dict from key to entry.
        place: Where the value begins.
        size: Number of nodes in it, itself included, aliases followed.
        height: Levels of nesting below it.
    """

    value: Scalar | list[Node] | dict[str, Entry]
    place: Place
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """Return the plain Python value, a fresh copy."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


class Flaw(NamedTuple):
    """Something that is wrong in the text itself, at a place of the tree."""

    place: Place
    path: Path
    message: str


class YamlError(Exception):
    """The text cannot be read at all."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


class Tree(NamedTuple):
    """One document.

    Attributes:
        root: None for an empty document.
        flaws: What is wrong in it, see :func:`read_tree`.
        place: Where it begins.
    """

    root: Node | None
    flaws: list[Flaw]
    place: Place


def read_tree(text: str, *, override: str = "") -> tuple[Node | None, list[Flaw]]:
    """Read one YAML document.

    Args:
        text: The document.
        override: Where it comes from, if it is no file: every place of the tree names it.

    Returns:
        The root (None for an empty document), and every flaw: duplicate keys, keys that are no text, numbers
        without a finite value. A flawed value is null in the tree.

    Raises:
        YamlError: The syntax is wrong, the document is too deep or too large, or a second one follows.
    """
    first, *more = read_documents(text, override=override) or [Tree(None, [], Place(1, 1, override))]
    if more:
        raise YamlError(more[0].place, "a second document begins: a config is one document")
    return first.root, first.flaws


def read_documents(text: str, *, override: str = "") -> list[Tree]:
    """Read all documents of a text, such as those of a mergekit-multi file.

    Raises:
        YamlError: As of :func:`read_tree`.
    """
    builder = _Builder(override)
    collecting = gc.isenabled()
    gc.disable()  # Millions of nodes and no garbage: the collector would take more time than the parser.
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1, override) if mark else Place(1, 1, override)
        raise YamlError(place, f"not valid YAML: {_reason(error, text)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise YamlError(Place(line, column, override), f"not valid YAML: {error.reason}") from error
    finally:
        if collecting:
            gc.enable()
    return builder.trees


def _events(text: str) -> Iterator[Event]:
    return yaml.parse(text, Loader=_Loader)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


def _reason(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    lines = text.split("\n", mark.line + 1) if mark else []
    if mark and lines[mark.line : mark.line + 1] and lines[mark.line][mark.column : mark.column + 1] == "\t":
        return "a tab cannot indent: use spaces"
    return " ".join(part for part in (error.context, error.problem) if part)


def resolve(text: str) -> Scalar:
    """Return what a plain scalar means.

    Raises:
        ValueError: A number that is infinite, not a number, or too long.
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if text[0] not in "-+.0123456789":
        return text
    if NOT_FINITE.fullmatch(text):
        raise ValueError(f"a number must be finite, got {text}")
    if INT.fullmatch(text):
        return _whole(text)
    if FLOAT.fullmatch(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"a number must be finite, {_short(text)} is too large")
        return number
    return text


def _whole(text: str) -> int:
    if len(text) > 100:
        raise ValueError(f"a number of {len(text)} digits is too large")
    base = {"0x": 16, "0o": 8}.get(text[:2], 10)
    return int(text, base)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(slots=True)
class _Open:
    """A list or mapping that is not complete yet."""

    node: Node
    anchor: str | None
    at: str | int = 0
    key: str | None = None
    key_place: Place | None = None
    merging: bool = False
    merged: list[Node] = field(default_factory=list)


class _Builder:
    """Takes the events one by one. Iterative, so that no nesting can end the stack."""

    def __init__(self, override: str) -> None:
        self.trees: list[Tree] = []
        self._override = override
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node | None] = {}
        self._aliased = 0

    def take(self, event: Event) -> None:
        """Take one event of the parser."""
        if isinstance(event, ScalarEvent):
            self._scalar(event)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._start(event)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            self._end()
        elif isinstance(event, AliasEvent):
            self._alias(event)
        elif isinstance(event, DocumentStartEvent):
            self.trees.append(Tree(None, [], self._place(event)))
            self._anchors = {}  # an anchor ends with its document

    def _place(self, event: Event) -> Place:
        mark = event.start_mark
        assert mark is not None
        return Place(mark.line + 1, mark.column + 1, self._override)

    def _path(self) -> Path:
        return tuple(part.at for part in self._stack)

    def _flaw(self, place: Place, message: str) -> None:
        self.trees[-1].flaws.append(Flaw(place, self._path(), message))

    def _scalar(self, event: ScalarEvent) -> None:
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.node.value, dict) and frame.key is None:
            self._key(frame, event)
            return
        place = self._place(event)
        node = Node(self._value(event, place), place)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._add(node)

    def _key(self, frame: _Open, event: ScalarEvent) -> None:
        frame.key, frame.key_place, frame.at = event.value, self._place(event), event.value
        frame.merging = event.value == "<<" and event.implicit[0]
        if frame.merging:
            return
        if event.implicit[0] and not isinstance(_meaning(event.value), str):
            self._flaw(frame.key_place, f"a key must be text: put quotes around {_short(event.value)!r}")
        assert isinstance(frame.node.value, dict)
        if event.value in frame.node.value:
            first = frame.node.value[event.value].place
            self._flaw(frame.key_place, f"the key stands here twice, first in line {first.line}: remove one")

    def _value(self, event: ScalarEvent, place: Place) -> Scalar:
        tag = event.tag
        try:
            if tag is None and event.implicit[0]:
                return resolve(event.value)
            if tag in (None, "!", _TAG + "str"):
                return str(event.value)
            if tag in (_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"):
                return resolve(event.value)
        except ValueError as error:
            self._flaw(place, str(error))
            return None
        self._flaw(place, f"the tag {_short(str(tag))!r} has no place in a config: remove it")
        return None

    def _start(self, event: MappingStartEvent | SequenceStartEvent) -> None:
        place = self._place(event)
        mapping = isinstance(event, MappingStartEvent)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.node.value, dict) and frame.key is None:
            raise YamlError(place, "a key must be text, not a list or a mapping")
        if len(self._stack) >= MOST_NESTING:
            raise YamlError(place, f"nested more than {MOST_NESTING} levels deep")
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            self._flaw(place, f"the tag {_short(str(event.tag))!r} has no place in a config: remove it")
        if event.anchor:
            self._anchors[event.anchor] = None
        self._stack.append(_Open(Node({} if mapping else [], place), event.anchor))

    def _end(self) -> None:
        frame = self._stack.pop()
        for source in frame.merged:
            _merge(frame.node, source)
        if frame.anchor:
            self._anchors[frame.anchor] = frame.node
        self._add(frame.node)

    def _alias(self, event: AliasEvent) -> None:
        place = self._place(event)
        if event.anchor not in self._anchors:
            raise YamlError(place, f"no anchor &{_short(str(event.anchor))} stands before this alias")
        node = self._anchors[event.anchor]
        if node is None:
            raise YamlError(place, f"the alias *{_short(str(event.anchor))} contains itself")
        if self._stack and isinstance(self._stack[-1].node.value, dict) and self._stack[-1].key is None:
            raise YamlError(place, "a key must be text, not an alias")
        self._aliased += node.size
        if self._aliased > MOST_ALIASED:
            raise YamlError(place, f"the aliases stand for more than {MOST_ALIASED} values: write them out")
        if len(self._stack) + node.height >= MOST_NESTING:
            raise YamlError(place, f"nested more than {MOST_NESTING} levels deep")
        self._add(node)

    def _add(self, node: Node) -> None:
        if not self._stack:
            self.trees[-1] = self.trees[-1]._replace(root=node)
            return
        frame = self._stack[-1]
        parent = frame.node
        parent.height = max(parent.height, node.height + 1)
        parent.size += node.size
        if isinstance(parent.value, list):
            parent.value.append(node)
            frame.at = len(parent.value)
            return
        assert isinstance(parent.value, dict) and frame.key is not None and frame.key_place is not None
        if frame.merging:
            self._remember_merge(frame, node)
        elif frame.key not in parent.value:
            parent.value[frame.key] = Entry(frame.key_place, node)
        frame.key = None

    def _remember_merge(self, frame: _Open, node: Node) -> None:
        sources = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(source.value, dict) for source in sources):
            self._flaw(node.place, "<< takes a mapping or a list of mappings, such as *anchor")
            return
        frame.merged.extend(sources)


def _meaning(text: str) -> Scalar:
    try:
        return resolve(text)
    except ValueError:
        return None


def _merge(node: Node, source: Node) -> None:
    assert isinstance(node.value, dict) and isinstance(source.value, dict)
    for key, entry in source.value.items():
        node.value.setdefault(key, entry)


def find(root: Node, path: Path) -> tuple[Place, Node, Path]:
    """Return the key's place, the value and the path of the deepest part of ``path`` that exists."""
    place, node = root.place, root
    for depth, part in enumerate(path):
        if isinstance(node.value, dict) and part in node.value:
            place, node = node.value[str(part)]
        elif isinstance(node.value, list) and isinstance(part, int) and 0 <= part < len(node.value):
            node = node.value[part]
            place = node.place
        else:
            return place, node, path[:depth]
    return place, node, path
