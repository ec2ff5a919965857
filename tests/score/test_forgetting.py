from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.score.forgetting import (
    Change,
    average,
    backward_transfer,
    change,
    forward_transfer,
    mean_forgetting,
    pareto,
    retention,
)

# Three stages, three tasks; by hand.
TABLE = [[0.8, 0.3, 0.1], [0.9, 0.7, 0.2], [0.6, 0.5, 0.9]]


def test_transfer_by_hand() -> None:
    assert average(TABLE) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert backward_transfer(TABLE) == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert forward_transfer(TABLE, [0.1, 0.2, 0.3]) == pytest.approx(((0.3 - 0.2) + (0.2 - 0.3)) / 2)
    assert mean_forgetting(TABLE) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)


@given(st.integers(2, 5), st.data())
def test_forgetting_is_at_least_minus_the_backward_transfer(size: int, data: st.DataObject) -> None:
    row = st.lists(st.floats(0, 1), min_size=size, max_size=size)
    table = data.draw(st.lists(row, min_size=size, max_size=size))
    assert mean_forgetting(table) >= -backward_transfer(table) - 1e-12


def test_what_is_no_table() -> None:
    for table in ([[0.5]], [[0.5, 0.1]], []):
        with pytest.raises(ValueError, match="as many stages as tasks"):
            average(table)
    with pytest.raises(ValueError, match="3 tasks and 2"):
        forward_transfer(TABLE, [0.1, 0.2])


def test_gain_and_forgetting() -> None:
    assert change((2.5, 2.0), (1.5, 2.25)) == (1.0, 0.25), "bits per byte: lower is better"
    assert change((0.25, 0.5), (0.75, 0.375), higher_is_better=True) == (0.5, 0.125)


def test_retention() -> None:
    assert retention(0.75, 0.5, chance=0.25) == 0.5
    assert retention(0.75, 0.25, chance=0.25) == 0.0
    assert retention(0.25, 0.5, chance=0.25) is None
    assert retention(0.75, 0.5, chance=None) is None


SMALL = st.integers(0, 4).map(float)


@given(st.lists(st.builds(Change, SMALL, SMALL), max_size=12))
def test_front_against_brute_force(points: list[Change]) -> None:
    def beaten(one: Change) -> bool:
        return any(
            other != one and other.gain >= one.gain and other.forgetting <= one.forgetting for other in points
        )

    found = pareto(points)
    assert sorted(found) == [place for place, one in enumerate(points) if not beaten(one)]
    gains = [points[place].gain for place in found]
    assert gains == sorted(gains)


def test_front_without_numbers() -> None:
    assert pareto([Change(math.nan, 0.0), Change(1.0, 1.0), Change(math.inf, 0.0)]) == [1]
