from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.training.order import competence, curriculum

NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@given(NUMBERS, st.booleans())
def test_strict_order_is_a_stable_sort(values: list[int], reverse: bool) -> None:
    order = curriculum(values, reverse=reverse)
    assert order.tolist() == sorted(range(len(values)), key=lambda i: -values[i] if reverse else values[i])


@given(NUMBERS, st.floats(0.01, 1.0), st.booleans(), st.integers(0, 5))
def test_every_document_once_and_none_before_its_time(
    values: list[int], pacing: float, reverse: bool, seed: int
) -> None:
    order = curriculum(values, pacing=pacing, reverse=reverse, seed=seed)
    count = len(values)
    assert sorted(order.tolist()) == list(range(count))
    ranks = {number: rank for rank, number in enumerate(curriculum(values, reverse=reverse).tolist())}
    for place, number in enumerate(order.tolist()):
        assert ranks[number] < max(place + 1, np.ceil(competence(place / count, pacing) * count))


def test_pacing_of_one_changes_nothing() -> None:
    assert curriculum([3, 1, 2], pacing=1.0).tolist() == [0, 1, 2]


def test_competence_is_that_of_the_paper() -> None:
    assert competence(0.0, 0.1) == pytest.approx(0.1)
    assert competence(1.0, 0.1) == 1.0
    # c0 = 0.01, half of the time: sqrt(.5 (1 - .0001) + .0001).
    assert competence(0.5, 0.01) == pytest.approx(0.70714, abs=1e-5)


def test_pace_draws_evenly_from_what_may_be_drawn() -> None:
    # With two documents and both allowed from the start, each comes first half of the time.
    first = [curriculum([1, 2], pacing=0.6, seed=seed)[0] for seed in range(2000)]
    assert abs(np.mean(first) - 0.5) < 0.05


def test_easier_ones_come_earlier_the_smaller_the_pacing() -> None:
    values = list(range(400))
    correlations = [
        float(np.corrcoef(curriculum(values, pacing=pacing), values)[0, 1]) for pacing in (0.05, 0.5, 0.99)
    ]
    assert correlations[0] > correlations[1] > correlations[2]
    assert correlations[0] > 0.6
    assert abs(correlations[2]) < 0.15
