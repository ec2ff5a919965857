"""A config file as written: the tree, the overrides laid over it, and the place of every path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evolve.config.documents import MOST_DOCUMENTS, is_mergekit, joined
from evolve.config.yaml import Entry, Node, Path, Place, YamlError, find, read_documents, read_tree
from evolve.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BARE = ("pipeline", 0, "merge")
"""Where the content of a bare mergekit file stands in the config that it is read as."""


@dataclass(frozen=True)
class Document:
    """A tree with its source.

    Attributes:
        source: The file's name, for messages.
        root: The tree, overrides included.
        bare: Whether the file is a bare mergekit config, without ``pipeline: - merge:`` around it.
        several: Whether it is several of them, one a document, each read as a stage.
    """

    source: str
    root: Node
    bare: bool = False
    several: bool = False

    def where(self, path: str | Sequence[str | int], *, key: bool = False) -> str:
        """Return ``file:line:column`` (or the override) of a value, or of its key.

        Args:
            path: Dotted, or as a sequence. Of a path that does not exist, the deepest part that does.
            key: Whether the position of the key is asked for.
        """
        parts = self._split(path) if isinstance(path, str) else self._inside(tuple(path))
        place, node, _ = find(self.root, parts)
        return self._at(place if key else node.place)

    def shown(self, path: str | Sequence[str | int]) -> str:
        """Return a path of the config as the user knows it: dotted, and without what a bare file lacks."""
        return dotted(self._split(path) if isinstance(path, str) else self._inside(tuple(path)))

    def problem(self, path: Path, message: str, *, key: bool = False) -> Problem:
        """Return a problem at a path of the config."""
        return Problem(self.where(path, key=key), self.shown(path), message)

    def flaw(self, place: Place, path: Path, message: str) -> Problem:
        """Return a problem at a place."""
        return Problem(self._at(place), dotted(path), message)

    def _at(self, place: Place) -> str:
        if place.override:
            return f"override {place.override!r}"
        return f"{self.source}:{place.line}:{place.column}"

    def _inside(self, path: Path) -> Path:
        if self.bare and path[: len(BARE)] == BARE:
            return path[len(BARE) :]
        return path

    def _split(self, text: str) -> Path:
        """Split a dotted path; a key may have dots in it."""
        parts = text.split(".") if text else []
        if self.bare and parts[:3] == ["pipeline", "0", "merge"]:
            parts = parts[3:]
        return split(self.root, parts)


def dotted(path: Path) -> str:
    """Return a path as people write it."""
    return ".".join(map(str, path))


def split(root: Node, parts: list[str]) -> Path:
    """Join parts to the longest keys that exist, and turn positions of lists into numbers."""
    path: list[str | int] = []
    node: Node | None = root
    while parts:
        part: str | int = parts[0]
        taken = 1
        if node is not None and isinstance(node.value, dict):
            for count in range(len(parts), 0, -1):
                if ".".join(parts[:count]) in node.value:
                    part, taken = ".".join(parts[:count]), count
                    break
            entry = node.value.get(str(part))
            node = entry.node if entry else None
        elif node is not None and isinstance(node.value, list) and parts[0].isdecimal():
            part = int(parts[0])
            node = node.value[part] if part < len(node.value) else None
        else:
            node = None
        path.append(part)
        parts = parts[taken:]
    return tuple(path)


def override(root: Node, overrides: Iterable[str]) -> tuple[Node, list[Problem]]:
    """Lay ``key.path=value`` texts over a tree, the later over the earlier.

    Values are YAML. A number in the path is a position in a list. Keys that are not there are created;
    whether they may be is for the schema to say.
    """
    problems = []
    for text in overrides:
        try:
            root = _override(root, text)
        except ValueError as error:
            problems.append(Problem(f"override {text!r}", "", str(error)))
    return root, problems


def _override(root: Node, text: str) -> Node:
    keys, equals, value = text.partition("=")
    keys = keys.strip()
    if not equals or not all(keys.split(".")):
        raise ValueError("expected key.path=value, such as search.trials=50")
    try:
        node, flaws = read_tree(value, override=text)
    except YamlError as error:
        raise ValueError(f"the value is {error.message}") from error
    if flaws:
        raise ValueError(flaws[0].message)
    place = Place(1, 1, text)
    return _put(root, split(root, keys.split(".")), node or Node(None, place), (), place)


def _put(root: Node, path: Path, value: Node, done: Path, place: Place) -> Node:
    """Return a copy of the tree with ``value`` at ``path``; aliases share nodes, so none is changed."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(root.value, list):
        if not isinstance(part, int) or part >= len(root.value):
            count = len(root.value)
            known = f"0 to {count - 1}" if count else "none"
            raise ValueError(f"{dotted(done)} is a list: expected a position ({known}), got {part!r}")
        items = list(root.value)
        items[part] = _put(items[part], rest, value, (*done, part), place)
        return replace(root, value=items)
    if isinstance(root.value, dict) or root.value is None:
        entries = dict(root.value or {})
        old = entries.get(str(part), Entry(place, Node(None, place)))
        # An overridden key is shown as the override, and so are the mappings that it creates.
        key_place = place if not rest else old.place
        entries[str(part)] = Entry(key_place, _put(old.node, rest, value, (*done, part), place))
        return replace(root, value=entries, place=root.place if root.value else place)
    if done == ("engine",) and isinstance(root.value, str):
        kind = Entry(root.place, root)
        return _put(replace(root, value={"kind": kind}), path, value, done, place)
    raise ValueError(f"{dotted(done)} is a single value and has no key {part!r}")


def parse(text: str, source: str, overrides: Iterable[str] = ()) -> tuple[Document, list[Problem]]:
    """Read a file's text to a document whose root is a mapping, and lay the overrides over it.

    Raises:
        ConfigError: The text is no YAML mapping.
    """
    try:
        trees = [
            tree for tree in read_documents(text) if tree.root is not None and tree.root.value is not None
        ]
        if len(trees) > 1 and not all(is_mergekit(tree.root) for tree in trees):
            raise YamlError(trees[1].place, "a second document begins: a config is one document")
        if len(trees) > MOST_DOCUMENTS:
            raise YamlError(trees[MOST_DOCUMENTS].place, f"more than {MOST_DOCUMENTS} documents")
    except YamlError as error:
        where = f"{source}:{error.place.line}:{error.place.column}"
        raise ConfigError([Problem(where, "", error.message)]) from error
    if not trees:
        raise ConfigError([Problem(source, "", "the file is empty: a config needs models and a pipeline")])
    root, flaws, _ = trees[0]
    if len(trees) > 1:
        root, flaws = joined(trees)
    assert root is not None
    if not isinstance(root.value, dict):
        what = "a list" if isinstance(root.value, list) else "a single value"
        message = f"expected a mapping with the keys models, pipeline and so on, got {what}"
        raise ConfigError([Problem(f"{source}:{root.place.line}:{root.place.column}", "", message)])
    root, problems = override(root, overrides)
    document = Document(source, root, is_mergekit(root), len(trees) > 1)
    return document, [document.flaw(*flaw) for flaw in flaws] + problems
