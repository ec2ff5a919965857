from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.gradient import at_depth, depth


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(0, 1))
def test_at_depth_is_a_line_through_the_knots(values: list[float], t: float) -> None:
    expected = np.interp(t, np.linspace(0, 1, len(values)) if len(values) > 1 else [0.0], values)
    assert at_depth(values, t) == pytest.approx(expected, abs=1e-9)


def test_one_knot_per_layer_gives_each_layer_its_own() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    assert [at_depth(values, depth(layer, 7)) for layer in range(7)] == pytest.approx(values, abs=1e-12)


def test_depth() -> None:
    assert [depth(layer, 5) for layer in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert depth(None, 5) == 0
    assert depth(0, 1) == 1
    assert depth(7, 5) == 1
