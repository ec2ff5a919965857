"""Which items share text with each other, or with a text that a recipe reads.

Two texts share text where a run of 13 words stands in both, case and punctuation left out, as in the
contamination study of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). An item of 5 to 12 words is
sought as a whole; a shorter one is not sought at all. Runs that stand in more than a quarter of the items of
a task, and in more than 10, are its template and do not count. A number alone would not do: many tasks ask a
dozen questions about one passage.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from evolve.types import Split

RUN = 13
SHORTEST = 5
TEMPLATE = 10
"""Items that may always share a run."""
TEMPLATE_SHARE = 0.25
"""Largest share of a task's items that may share a run."""
_WORD = re.compile(r"\w+")


class Place(NamedTuple):
    """An item of a task. The key of a group's item is ``member/key``: each member has its own template."""

    task: str
    split: Split
    key: str


@dataclass(frozen=True)
class Template:
    """Words that so many items of a task share that they are its form, not what it asks.

    Attributes:
        task: The task; of a group ``group/member``.
        holding: Items that hold the most frequent run of them.
        items: All items of the task.
        words: This run.
    """

    task: str
    holding: int
    items: int
    words: str


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
        unread: Why the text was not read to its end, so that ``shared`` is a least number; or empty.
    """

    task: str
    split: Split
    corpus: str
    items: int
    shared: int
    short: int
    keys: tuple[str, ...]
    unread: str = ""


class Index:
    """The runs of words of all items.

    Args:
        texts: Item to its text.

    Attributes:
        templates: What does not count, one entry a task.
    """

    def __init__(self, texts: Mapping[Place, str]) -> None:
        runs: dict[tuple[str, ...], set[Place]] = defaultdict(set)
        for place, text in texts.items():
            for run in _runs(_words(text)):
                runs[run].add(place)
        self.templates = _take_templates(runs, Counter(map(_member, texts)))
        self._runs = {run: places for run, places in runs.items() if places}
        self._lengths = sorted({len(run) for run in self._runs})
        self._firsts = {run[:2] for run in self._runs}
        self._places = tuple(texts)
        self._sought = {place for places in self._runs.values() for place in places}

    def __len__(self) -> int:
        """Number of items."""
        return len(self._places)

    def sharing(self, tasks: Collection[str] | None = None) -> dict[Place, Place]:
        """Return each search item that shares text with a holdout item, and one such item.

        Args:
            tasks: Whose items; None: all.
        """
        found: dict[Place, Place] = {}
        for places in self._runs.values():
            wanted = [place for place in places if tasks is None or place.task in tasks]
            held = min((place for place in wanted if place.split == "holdout"), default=None)
            if held is not None:
                found |= {place: held for place in wanted if place.split == "search"}
        return dict(sorted(found.items()))

    def overlaps(self, corpora: Iterable[tuple[str, Iterable[str]]]) -> list[Overlap]:
        """Return what the items share with each of some texts, one entry for every task and split.

        Args:
            corpora: Name of a text, and its documents. Where reading one raises UserError or OSError, the
                entries of that text say so.
        """
        entries = []
        for name, documents in corpora:
            hit, unread = self._in(documents)
            for task, split in dict.fromkeys((place.task, place.split) for place in self._places):
                items = [place for place in self._places if (place.task, place.split) == (task, split)]
                sought = [place for place in items if place in self._sought]
                shared = tuple(place.key for place in sought if place in hit)
                short = len(items) - len(sought)
                entries.append(
                    Overlap(task, split, name, len(sought), len(shared), short, shared[:5], unread)
                )
        return entries

    def _in(self, documents: Iterable[str]) -> tuple[set[Place], str]:
        """Return the items that are in some documents, and what kept the rest from being read."""
        hit: set[Place] = set()
        try:
            for document in documents:
                hit |= self._in_words(_words(document))
        except (UserError, OSError) as error:
            return hit, str(error)
        return hit, ""

    def _in_words(self, words: Sequence[str]) -> set[Place]:
        hit: set[Place] = set()
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


def _take_templates(
    runs: dict[tuple[str, ...], set[Place]], sizes: Mapping[str, int]
) -> tuple[Template, ...]:
    """Take a task's items away from the runs that are its template; return the most frequent of each task."""
    found: dict[str, Template] = {}
    for run, places in runs.items():
        if len(places) <= TEMPLATE:
            continue
        for task, count in Counter(map(_member, places)).items():
            if count <= max(TEMPLATE, TEMPLATE_SHARE * sizes[task]):
                continue
            if task not in found or count > found[task].holding:
                found[task] = Template(task, count, sizes[task], " ".join(run))
            runs[run] = {place for place in runs[run] if _member(place) != task}
    return tuple(found.values())


def _member(place: Place) -> str:
    """Return the task of an item; of a group's item ``group/member``."""
    member = place.key.rpartition("/")[0]
    return f"{place.task}/{member}" if member else place.task


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if SHORTEST <= len(words) < RUN:
        yield tuple(words)
    for start in range(len(words) - RUN + 1):
        yield tuple(words[start : start + RUN])
