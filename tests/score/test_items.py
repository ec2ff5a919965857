from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evolve.score.items import Draw, distinct, draw_shots, item_key, ranked

docs = st.lists(
    st.fixed_dictionaries({"q": st.integers(0, 60), "id": st.integers(0, 3)}), min_size=1, max_size=80
)


def text(doc: Any) -> str:
    return f"question {doc['q']}"


@given(docs, st.integers(0, 20), st.one_of(st.none(), st.integers(1, 30)), st.integers(0, 5), st.randoms())
def test_a_draw(pool: list[dict[str, int]], held: int, wanted: int | None, seed: int, random: Any) -> None:
    items, left_out = distinct(pool)
    assert len(items) + left_out == len(pool)
    draw = Draw(ranked(items, seed), lambda item: text(item.doc))
    holdout, search = draw.take(held), draw.take(wanted)
    texts = [text(item.doc) for item in (*holdout, *search)]
    assert len(set(texts)) == len(texts), "the same question stands on both sides, or twice"
    assert len(holdout) == min(held, len({doc["q"] for doc in pool}))
    if wanted is None:
        assert set(texts) == {text(doc) for doc in pool}
    for part in (holdout, search):
        assert [item.key for item in part] == sorted(item.key for item in part)
    shuffled = list(pool)
    random.shuffle(shuffled)
    again = Draw(ranked(distinct(shuffled)[0], seed), lambda item: text(item.doc))
    assert (again.take(held), again.take(wanted)) == (holdout, search)


@given(docs, st.integers(1, 20), st.integers(0, 5))
def test_more_items_keep_those_there_were(pool: list[dict[str, int]], wanted: int, seed: int) -> None:
    few, more = (
        Draw(ranked(distinct(pool)[0], seed), lambda item: text(item.doc)),
        Draw(ranked(distinct(pool)[0], seed), lambda item: text(item.doc)),
    )
    assert few.take(3) == more.take(3)
    assert {item.key for item in few.take(wanted)} <= {item.key for item in more.take(wanted + 5)}


@given(st.integers(1, 200), st.integers(0, 200), st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_shots_are_never_scored(scored: int, overlap: int, count: int, seed: int, ordered: bool) -> None:
    items, _ = distinct({"q": i} for i in range(scored))
    start = max(0, scored - overlap)
    pool = [{"q": i} for i in range(start, start + max(overlap, count))]
    shots = draw_shots(pool, items, count, seed=seed, ordered=ordered)
    left = {item.key for item in items} - shots.reserved
    assert not left & {item_key(doc) for doc in shots.docs}
    assert all(doc in pool for doc in shots.docs)
    if ordered:
        assert list(shots.docs) == [doc for doc in pool if doc in shots.docs]


def test_keys_ignore_the_order_of_fields_and_tell_types_apart() -> None:
    assert item_key({"a": 1, "b": "é"}) == item_key({"b": "é", "a": 1})
    assert len({item_key(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {"b": 1})}) == 5
