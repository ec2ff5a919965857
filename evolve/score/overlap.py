"""Which items share text with each other, or with a text that a recipe reads.

Two texts share text where a run of 13 words stands in both, case and punctuation left out, as in the
contamination study of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). An item of 5 to 12 words is
sought as a whole; a shorter one is not sought at all. Runs that stand in more than 10 items are the task's
template, and do not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from evolve.types import Split

RUN = 13
SHORTEST = 5
TEMPLATE = 10
_WORD = re.compile(r"\w+")


class Place(NamedTuple):
    """An item of a task."""

    task: str
    split: Split
    key: str


@dataclass(frozen=True)
class Overlap:
    """What the items of one split of a task share with one text.

    Attributes:
        task: The task.
        split: The split.
        corpus: What the text is called.
        items: Items that were sought.
        shared: How many of them share text with it.
        short: Items that are too short, or all template, and were not sought.
        keys: Some of those that share text.
    """

    task: str
    split: Split
    corpus: str
    items: int
    shared: int
    short: int
    keys: tuple[str, ...]


class Index:
    """The runs of words of all items.

    Args:
        texts: Item to its text.
    """

    def __init__(self, texts: Mapping[Place, str]) -> None:
        runs: dict[tuple[str, ...], set[Place]] = defaultdict(set)
        for place, text in texts.items():
            for run in _runs(_words(text)):
                runs[run].add(place)
        self._runs = {run: places for run, places in runs.items() if len(places) <= TEMPLATE}
        self._lengths = sorted({len(run) for run in self._runs})
        self._firsts = {run[:2] for run in self._runs}
        self._places = tuple(texts)
        self._sought = {place for places in self._runs.values() for place in places}

    def sharing(self) -> dict[Place, Place]:
        """Return each search item that shares text with a holdout item, and one such item."""
        found: dict[Place, Place] = {}
        for places in self._runs.values():
            held = [place for place in places if place.split == "holdout"]
            if held:
                found |= {place: min(held) for place in places if place.split == "search"}
        return dict(sorted(found.items()))

    def overlaps(self, corpora: Iterable[tuple[str, Iterable[str]]]) -> list[Overlap]:
        """Return what the items share with each of some texts, one entry for every task and split.

        Args:
            corpora: Name of a text, and its documents.
        """
        entries = []
        for name, documents in corpora:
            hit = self._in(documents)
            for task, split in dict.fromkeys((place.task, place.split) for place in self._places):
                items = [place for place in self._places if (place.task, place.split) == (task, split)]
                sought = [place for place in items if place in self._sought]
                shared = tuple(place.key for place in sought if place in hit)
                entries.append(
                    Overlap(task, split, name, len(sought), len(shared), len(items) - len(sought), shared[:5])
                )
        return entries

    def _in(self, documents: Iterable[str]) -> set[Place]:
        hit: set[Place] = set()
        for document in documents:
            words = _words(document)
            for start in range(len(words) - SHORTEST + 1):
                if tuple(words[start : start + 2]) not in self._firsts:
                    continue
                for length in self._lengths:
                    hit |= self._runs.get(tuple(words[start : start + length]), set())
        return hit


def item_text(task: Any, doc: Any) -> str:
    """Return what an item asks: the question; with the answer where the question says too little alone."""
    question, answer = task.doc_to_text(doc), task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.get_config("doc_to_choice") is not None else None
    if isinstance(answer, int) and isinstance(choices, list) and 0 <= answer < len(choices):
        answer = choices[answer]
    parts = [part for part in (question, answer) if isinstance(part, str)]
    if isinstance(question, str) and len(_words(question)) >= SHORTEST:
        return question
    return " ".join([*parts, *(str(choice) for choice in choices or ())])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if SHORTEST <= len(words) < RUN:
        yield tuple(words)
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])
