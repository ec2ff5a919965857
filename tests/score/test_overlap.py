"""Shared runs of words, against a search that compares every pair of texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from evolve.score.overlap import RUN, SHORTEST, TEMPLATE, Index, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = [f"w{i}" for i in range(60)]


def place(number: int, split: str = "search", task: str = "t") -> Place:
    return Place(task, "holdout" if split == "holdout" else "search", f"{number:03d}")


def brute(item: str, document: str) -> bool:
    """Whether a run of the item stands in the document, by looking everywhere."""
    mine = re.findall(r"\w+", item.casefold())
    theirs = re.findall(r"\w+", document.casefold())
    length = RUN if len(mine) >= RUN else len(mine)
    if length < SHORTEST:
        return False
    runs = [mine[start : start + length] for start in range(len(mine) - length + 1)]
    return any(theirs[start : start + length] in runs for start in range(len(theirs) - length + 1))


texts = st.lists(st.sampled_from(WORDS[:4]), max_size=20).map(" ".join)


@given(st.lists(texts, min_size=1, max_size=8), st.lists(texts, max_size=4))
def test_every_shared_run_is_found(items: Sequence[str], documents: Sequence[str]) -> None:
    index = Index({place(number): item for number, item in enumerate(items)})
    (found,) = index.overlaps([("corpus", documents)])
    expected = [
        f"{number:03d}"
        for number, item in enumerate(items)
        if any(brute(item, document) for document in documents)
    ]
    assert found.shared == len(expected) and list(found.keys) == expected[:5]
    assert found.items + found.short == len(items)


@given(st.lists(texts, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=4))
def test_search_and_holdout(search: Sequence[str], holdout: Sequence[str]) -> None:
    items = {place(number): text for number, text in enumerate(search)}
    items |= {place(number, "holdout", "other"): text for number, text in enumerate(holdout)}
    found = Index(items).sharing()
    for number, text in enumerate(search):
        mine = re.findall(r"\w+", text)
        if len(mine) >= RUN:
            assert (place(number) in found) == any(
                brute(text, other) for other in holdout if len(other.split()) >= RUN
            )
    assert all(held.split == "holdout" for held in found.values())


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
    item = "Who, in the year 1911, was the first to reach the geographic South Pole of the Earth?"
    index = Index({place(0): item})
    (found,) = index.overlaps(
        [("c", ["Quiz night!\nwho in the year 1911 WAS the first -- to reach\tthe geographic south pole"])]
    )
    assert found.shared == 1
    (found,) = index.overlaps([("c", ["Who in the year 1911 was the first to reach the pole"])])
    assert found.shared == 0, "twelve words are no run"


def test_templates_do_not_count() -> None:
    frame = " ".join(WORDS[:20])
    items = {place(n): f"{frame} question {n}" for n in range(TEMPLATE + 1)}
    items |= {place(n, "holdout"): f"{frame} question {n}" for n in range(100, 103)}
    assert Index(items).sharing() == {}
    few = {key: text for key, text in items.items() if key.key in ("000", "100")}
    assert Index(few).sharing() == {place(0): place(100, "holdout")}


def test_short_items_are_counted_as_not_sought() -> None:
    (found,) = Index({place(0): "four words are few", place(1): "five words are just enough"}).overlaps(
        [("c", ["four words are few five words are just enough"])]
    )
    assert (found.items, found.shared, found.short) == (1, 1, 1)
