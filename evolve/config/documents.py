"""Several mergekit configs in one file, as mergekit-multi reads them: documents that use each other by name.

They become the stages of one pipeline, in the order in which they need each other. The document without a
name is the result; where all have names, it is the last of those that no other uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evolve.config.references import references, spelled
from evolve.config.yaml import Entry, Flaw, Node, Path, Place, Tree, find

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_DOCUMENTS = 100
OWN = ("name", "score", "search", "engine")
"""Keys of a config that a bare mergekit file may have beside its own. ``name`` is that of the run there."""


class _Part(NamedTuple):
    root: Node
    flaws: list[Flaw]
    name: str | None
    uses: dict[str, Path]


def is_mergekit(root: Node | None) -> bool:
    """Whether a document is a bare mergekit config."""
    return (
        root is not None
        and isinstance(root.value, dict)
        and "merge_method" in root.value
        and "pipeline" not in root.value
    )


def joined(trees: Sequence[Tree]) -> tuple[Node, list[Flaw]]:
    """Return several mergekit documents as the tree of one config, and what is wrong with their names."""
    parts = [_part(tree) for tree in trees]
    flaws = list(_names(parts))
    ordered, cycles = _in_order(parts)
    flaws += cycles
    stages = []
    for position, part in enumerate(ordered):
        path = ("pipeline", position, "merge")
        flaws += [flaw._replace(path=(*path, *flaw.path)) for flaw in part.flaws]
        stages.append(Node({"merge": Entry(part.root.place, part.root)}, part.root.place))
    place = trees[0].place
    entries = {"pipeline": Entry(place, Node(stages, place))}
    entries.update(_taken(ordered[-1].root))
    return Node(entries, place), flaws


def _part(tree: Tree) -> _Part:
    root = tree.root
    assert root is not None and isinstance(root.value, dict)
    name = root.value["name"].node.value if "name" in root.value else None
    uses: dict[str, Path] = {}
    for path, reference in references(spelled(root.plain())[0]):
        uses.setdefault(reference, path)
    return _Part(root, tree.flaws, name if isinstance(name, str) else None, uses)


def _taken(root: Node) -> dict[str, Entry]:
    """Move the keys that belong to the whole config out of the last document."""
    assert isinstance(root.value, dict)
    return {key: root.value.pop(key) for key in OWN if key != "name" and key in root.value}


def _names(parts: Sequence[_Part]) -> Iterator[Flaw]:
    first: dict[str | None, Place] = {}
    for part in parts:
        assert isinstance(part.root.value, dict)
        place = part.root.value["name"].node.place if "name" in part.root.value else part.root.place
        if part.name in first:
            line = first[part.name].line
            if part.name is None:
                message = (
                    f"only one document has no name, and one begins in line {line} already: add `name: ...`"
                )
            else:
                message = f"the name {part.name!r} is taken by the document with it in line {line}"
            yield Flaw(place, ("name",), message)
        first.setdefault(part.name, place)


def _in_order(parts: Sequence[_Part]) -> tuple[list[_Part], list[Flaw]]:
    """Sort documents behind those that they use, the result last."""
    by_name = {part.name: part for part in reversed(parts) if part.name is not None}
    used = {name for part in parts for name in part.uses}
    unnamed = [part for part in parts if part.name is None]
    last = [*[part for part in parts if part.name not in used], *unnamed[:1]][-1:]
    ordered: list[_Part] = []
    flaws: list[Flaw] = []
    for part in [*(part for part in parts if all(part is not one for one in last)), *last]:
        flaws += _place(part, by_name, ordered, ())
    return ordered, flaws


def _place(
    part: _Part, by_name: dict[str, _Part], ordered: list[_Part], above: tuple[_Part, ...]
) -> Iterator[Flaw]:
    """Append a document behind those that it uses."""
    if any(part is other for other in ordered):
        return
    for name, path in part.uses.items():
        other = by_name.get(name)
        if other is None:
            continue
        if any(other is one for one in (*above, part)):
            chain = [one.name for one in (*above, part)]
            circle = [*chain[chain.index(name) :], name]
            message = "the documents need each other: " + " needs ".join(map(str, circle))
            yield Flaw(find(part.root, path)[1].place, path, message)
        else:
            yield from _place(other, by_name, ordered, (*above, part))
    if not any(part is other for other in ordered):
        ordered.append(part)
