"""Items of a task: their identity, and the seeded draw of disjoint search and holdout sets.

An item is named by a hash of its content, never by its position, so that a shuffled or grown data file
does not change what an item is. Nothing here knows lm-eval.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_PLENTY = 64


@dataclass(frozen=True)
class Item:
    """One document of a task.

    Attributes:
        key: 16 hex digits of the SHA-256 of its content; behind ``member/`` in a group of tasks.
        doc: The document as lm-eval gives it.
    """

    key: str
    doc: Any


def item_key(doc: Any) -> str:
    """Return 16 hex digits that stand for the content of ``doc``, whatever the order of its fields."""
    text = json.dumps(doc, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rank(key: str, seed: int) -> str:
    """Return what items are sorted by before a draw: a hash of seed and key, so file order has no say."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def seed_of(key: str, seed: int) -> int:
    """Return the seed of the few-shot draw of one item, so that its prompt depends on nothing else."""
    return int(rank(key, seed)[:12], 16)


def distinct(docs: Iterable[Any]) -> tuple[list[Item], int]:
    """Return the items with different content, the first of equal ones, and how many were left out."""
    found: dict[str, Item] = {}
    count = 0
    for doc in docs:
        count += 1
        key = item_key(doc)
        found.setdefault(key, Item(key, doc))
    return list(found.values()), count - len(found)


def ranked(items: Iterable[Item], seed: int) -> list[Item]:
    """Return the items in the order of the draw."""
    return sorted(items, key=lambda item: rank(item.key, seed))


class Draw:
    """Takes items in the order of the draw, skipping those whose text was taken before.

    Two documents may differ in an id and read the same; such twins must not stand on both sides. Nor may one
    document that several tasks of a group ask about; on one side it is an item of each.

    Attributes:
        seen: Keys and texts of the items taken so far.
        twins: Items skipped so far.
    """

    def __init__(self, items: list[Item], text: Callable[[Item], str]) -> None:
        self._items = items
        self._text = text
        self._next = 0
        self.seen: set[str] = set()
        self.twins = 0

    def take(self, count: int | None, *, avoid: Collection[str] = ()) -> tuple[Item, ...]:
        """Return the next ``count`` items (None: all that are left), sorted by key; fewer where they run out.

        Args:
            count: How many.
            avoid: What other draws have ``seen``.
        """
        taken: list[Item] = []
        while self._next < len(self._items) and (count is None or len(taken) < count):
            item = self._items[self._next]
            self._next += 1
            member, _, document = item.key.rpartition("/")
            text = self._text(item)
            own = {item.key, f"{member}/{text}"}
            if own & self.seen or any(mark in avoid for mark in (document, text)):
                self.twins += 1
                continue
            self.seen |= {*own, document, text}
            taken.append(item)
        return tuple(sorted(taken, key=lambda item: item.key))


@dataclass(frozen=True)
class Shots:
    """Where a task's few-shot examples come from, so that no scored item is among them.

    Attributes:
        docs: The pool, in the order in which the sampler sees it.
        reserved: Keys of items that stay in the pool and are never scored.
    """

    docs: tuple[Any, ...]
    reserved: frozenset[str] = frozenset()


def draw_shots(pool: list[Any], items: list[Item], count: int, *, seed: int, ordered: bool) -> Shots:
    """Decide on the few-shot pool of a task that wants ``count`` examples.

    A pool apart from the scored split is used as it is. A small pool (a hand-picked list) keeps its
    examples and the items give way. A pool that is the scored split itself keeps a part that depends on
    the size of the task alone, so that prompts do not change with the number of items asked for.

    Args:
        pool: What the task draws its examples from.
        items: The distinct items of the scored split.
        count: Examples per prompt, at least 1.
        seed: Seed of the draw.
        ordered: Whether the order of the pool matters (the sampler takes the first ones).
    """
    keys = {item.key for item in items}
    pairs = [(item_key(doc), doc) for doc in pool]
    apart = [(key, doc) for key, doc in pairs if key not in keys]
    if len(apart) >= count + 1:
        chosen = apart
        reserved: frozenset[str] = frozenset()
    elif len(pairs) <= _PLENTY // 4 and len(pairs) < len(items):
        chosen = pairs
        reserved = frozenset(key for key, _ in pairs) & keys
    else:
        size = max(count + 1, min(4 * count, len(pairs) // 10))
        last = sorted(pairs, key=lambda pair: rank(pair[0], seed))[-size:]
        kept = {key for key, _ in last}
        chosen = [pair for pair in pairs if pair[0] in kept]
        reserved = frozenset(kept) & keys
    if not ordered:
        chosen = sorted(chosen, key=lambda pair: rank(pair[0], seed))[-max(_PLENTY, 8 * count) :]
    return Shots(tuple(doc for _, doc in chosen), reserved)
