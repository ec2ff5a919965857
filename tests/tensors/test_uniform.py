from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.tensors.uniform import STEPS, limit, words
from tests.tensors.test_sparsify import philox_words


@given(st.integers(0, 2**128 - 1), st.integers(0, 60), st.integers(0, 40))
@settings(max_examples=50)
def test_any_part_of_the_sequence_is_philox(seed: int, start: int, count: int) -> None:
    expected = philox_words(seed, start + count)[start:]
    assert words(seed, start, count).tolist() == expected


def test_far_parts_can_be_asked_for() -> None:
    start = 10**12 + 5
    assert np.array_equal(words(3, start, 100)[7:], words(3, start + 7, 93))


def test_words_are_uniform() -> None:
    drawn = words(1, 0, 1_000_000)
    assert drawn.dtype == np.dtype("u4")
    counts = np.bincount(drawn >> 28, minlength=16)
    assert (abs(counts - 62_500) < 5 * 62_500**0.5).all()


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(-1.0, 0), (0.0, 0), (1e-12, 0), (0.5, STEPS // 2), (1.0, STEPS), (7.0, STEPS)],
)
def test_limit(probability: float, expected: int) -> None:
    assert limit(probability) == expected
