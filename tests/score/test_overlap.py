"""Shared runs of words, against a search that compares every pair of texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import UserError
from evolve.score.overlap import RUN, SHORTEST, TEMPLATE, Index, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    index = Index(items)
    assert index.sharing() == {}
    [template] = index.templates
    assert (template.task, template.holding, template.items) == ("t", 14, 14)
    assert template.words in frame and len(template.words.split()) == RUN
    few = {key: text for key, text in items.items() if key.key in ("000", "100")}
    assert Index(few).sharing() == {place(0): place(100, "holdout")}


@pytest.mark.parametrize(("others", "template"), [(33, True), (36, False), (200, False)])
def test_a_dozen_questions_on_one_passage_are_no_template(others: int, template: bool) -> None:
    """Twelve of 45 items are more than a quarter, twelve of 48 are not."""
    passage = " ".join(WORDS[:20])
    items = {place(n): f"{passage} {n}" for n in range(6)}
    items |= {place(n, "holdout"): f"{passage} {n}" for n in range(6, 12)}
    items |= {place(100 + n): f"own {n} words" for n in range(others)}
    index = Index(items)
    assert len(index.sharing()) == (0 if template else 6)
    assert bool(index.templates) is template


def test_each_task_of_a_group_has_its_own_template() -> None:
    """A template of one of ten tasks stands in a tenth of the group's items."""
    frames = [" ".join(f"f{task}w{n}" for n in range(20)) for task in range(10)]
    items = {
        Place("group", "search" if n % 2 else "holdout", f"part{task}/{n:03d}"): f"{frame} question {n}"
        for task, frame in enumerate(frames)
        for n in range(12)
    }
    index = Index(items)
    assert index.sharing() == {}
    assert {one.task for one in index.templates} == {f"group/part{task}" for task in range(10)}


def test_a_text_that_breaks_off_is_not_clean() -> None:
    def documents() -> Iterator[str]:
        yield "five words are just enough"
        raise UserError("line 2 is broken")

    items = {place(0): "five words are just enough", place(1): "another five words of text"}
    broken, whole = Index(items).overlaps([("broken", documents()), ("whole", ["nothing of it here at all"])])
    assert (broken.shared, broken.unread) == (1, "line 2 is broken")
    assert (whole.shared, whole.unread) == (0, "")


def test_short_items_are_counted_as_not_sought() -> None:
    (found,) = Index({place(0): "four words are few", place(1): "five words are just enough"}).overlaps(
        [("c", ["four words are few five words are just enough"])]
    )
    assert (found.items, found.shared, found.short) == (1, 1, 1)
