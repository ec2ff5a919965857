from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.training.mix import Stretch, mixed, replayed, stretches
from evolve.training.pack import Packed
from evolve.training.rows import Row


def rows(sizes: list[int], part: str) -> list[Packed]:
    empty = np.zeros(1, np.int32)
    return [Packed(Row(empty, empty, (1,), part), float(size)) for size in sizes]


def test_constant_share_is_even() -> None:
    found = list(mixed(rows([1] * 75, "data"), rows([1] * 25, "replay"), stretches(0.25), 100))
    at = [place for place, one in enumerate(found) if one.row.part == "replay"]
    assert len(at) == 25
    assert set(np.diff(at)) == {4}


def test_scheduled_share() -> None:
    plan = stretches(0.4, [(0.5, 1.0), (1.0, 0.5)])
    assert replayed(plan) == pytest.approx(0.3)
    assert replayed(plan, 0.5) == pytest.approx(0.2)
    found = list(mixed(rows([1] * 700, "data"), rows([1] * 300, "replay"), plan, 1000))
    old = np.array([one.row.part == "replay" for one in found])
    assert abs(old[:500].mean() - 0.4) < 0.01
    assert abs(old[500:].mean() - 0.2) < 0.01


def test_a_scaled_share_stays_below_the_most() -> None:
    assert stretches(0.5, [(0.3, 3.0), (1.0, 0.0)]) == (Stretch(0.3, 0.9), Stretch(1.0, 0.0))


@given(
    st.lists(st.integers(1, 9), max_size=30),
    st.lists(st.integers(1, 9), max_size=30),
    st.floats(0, 0.9),
)
def test_all_rows_in_their_orders_and_the_share_on_the_way(
    data: list[int], replay: list[int], share: float
) -> None:
    first, second = rows(data, "data"), rows(replay, "replay")
    found = list(mixed(first, second, stretches(share), float(sum(data) + sum(replay))))
    assert [id(one) for one in found if one.row.part == "data"] == list(map(id, first))
    assert [id(one) for one in found if one.row.part == "replay"] == list(map(id, second))
    seen = old = 0.0
    open_data = len(data)
    for one in found:
        seen += one.bytes
        old += one.bytes if one.row.part == "replay" else 0
        open_data -= one.row.part == "data"
        if open_data:
            assert old <= share * seen + 9, "never ahead by more than a row"
