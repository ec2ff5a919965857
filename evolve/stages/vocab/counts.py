"""Counts of neighbouring tokens in a text that is cut once, kept up to date while pairs are joined."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Pair: TypeAlias = tuple[int, int]
T = TypeVar("T", int, Pair)


class Count(NamedTuple):
    """How often something stands in the domain text, and in the general text."""

    domain: int
    general: int


@dataclass(frozen=True)
class Keyness:
    """What an occurrence is worth.

    Without a general text it is 1. With one it is the log of how much more often the thing stands in the
    domain text, per byte: frequency times that is the pointwise divergence of Tomokiyo and Hurst 2003, "A
    language model approach to keyphrase extraction". It is negative for what is commoner in general text.

    Attributes:
        domain: Bytes of the domain text.
        general: Bytes of the general text; 0: there is none.
    """

    domain: int
    general: int = 0

    def __call__(self, count: Count) -> float:
        """Return frequency times worth."""
        if not self.general or not count.domain:
            return float(count.domain)
        # Half an occurrence more, so that what is absent in the general text has a finite ratio.
        ratio = (count.domain / self.domain) / ((count.general + 0.5) / self.general)
        return count.domain * math.log(ratio)


class Counts:
    """Words as sequences of tokens, and how often each pair of neighbours stands in them.

    A run of three equal tokens holds one pair that can be joined, not two; it is counted so.
    """

    def __init__(self, words: Iterable[tuple[Sequence[int], Count]]) -> None:
        self._words: list[list[int]] = []
        self._weights: list[Count] = []
        self._pairs: dict[Pair, list[int]] = {}
        self._places: dict[Pair, set[int]] = {}
        for tokens, count in words:
            self._words.append(list(tokens))
            self._weights.append(count)
            self._add(len(self._words) - 1, 1)

    def __len__(self) -> int:
        return len(self._words)

    def word(self, index: int) -> Sequence[int]:
        """Return the tokens of a word as they are now."""
        return self._words[index]

    def weight(self, index: int) -> Count:
        """Return how often a word stands in the texts."""
        return self._weights[index]

    def pairs(self) -> Iterator[Pair]:
        """Yield every pair that stands in a word."""
        return iter(self._pairs)

    def count(self, pair: Pair) -> Count:
        """Return how often a pair can be joined."""
        found = self._pairs.get(pair)
        return Count(found[0], found[1]) if found else Count(0, 0)

    def join(self, pair: Pair, token: int) -> tuple[list[int], set[Pair]]:
        """Replace a pair by one token everywhere, in each word from left to right.

        Returns:
            The words that changed, ascending, and the pairs whose counts may have changed.
        """
        changed = sorted(self._places.get(pair, ()))
        touched: set[Pair] = set()
        for index in changed:
            touched.update(self._add(index, -1))
            self._words[index] = joined(self._words[index], pair, token)
            touched.update(self._add(index, 1))
        return changed, touched

    def _add(self, index: int, sign: int) -> list[Pair]:
        domain, general = self._weights[index]
        found = list(neighbours(self._words[index]))
        for pair in found:
            entry = self._pairs.setdefault(pair, [0, 0])
            entry[0] += sign * domain
            entry[1] += sign * general
            places = self._places.setdefault(pair, set())
            if sign > 0:
                places.add(index)
            else:
                places.discard(index)
        if sign < 0:
            for pair in set(found):
                if not self._places[pair]:
                    del self._places[pair], self._pairs[pair]
        return found


def neighbours(word: Sequence[int]) -> Iterator[Pair]:
    """Yield the pairs of a word; of a run of equal tokens every second one."""
    run = 0
    for place in range(len(word) - 1):
        left, right = word[place], word[place + 1]
        run = run + 1 if left == right else 0
        if run % 2 or not run:
            yield left, right


def joined(word: Sequence[int], pair: Pair, token: int) -> list[int]:
    """Return a word in which a pair is one token, joined from left to right."""
    left, right = pair
    result: list[int] = []
    place = 0
    while place < len(word):
        if word[place] == left and place + 1 < len(word) and word[place + 1] == right:
            result.append(token)
            place += 2
        else:
            result.append(word[place])
            place += 1
    return result


class Ranking(Generic[T]):
    """Things by a score that changes; of equal scores the smaller thing comes first."""

    def __init__(self, score: Callable[[T], float]) -> None:
        self._score: Callable[[T], float] = score
        self._heap: list[tuple[float, T]] = []

    def update(self, things: Iterable[T]) -> None:
        """Take notice of things whose score is new or has changed. One at or below 0 is never the best."""
        for thing in things:
            score = self._score(thing)
            if score > 0:
                heapq.heappush(self._heap, (-score, thing))

    def best(self) -> T | None:
        """Remove and return the thing with the highest score; None: there is none."""
        while self._heap:
            score, thing = heapq.heappop(self._heap)
            # An entry from before a change: the change has brought one of its own.
            if self._score(thing) == -score:
                return thing
        return None
