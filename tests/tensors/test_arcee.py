from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.arcee import approach, fuse_important, row_divergence

rows = st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=6)


def divergence(one: list[float], two: list[float]) -> float:
    """The definition, with 1e-8 added to each probability."""
    p, q = ([math.exp(v - max(x)) for v in x] for x in (one, two))
    pairs = [(a / math.fsum(p) + 1e-8, b / math.fsum(q) + 1e-8) for a, b in zip(p, q, strict=True)]
    return math.fsum(a * math.log(a / b) for a, b in pairs)


@given(rows, rows)
def test_row_divergence_is_the_definition(one: list[float], two: list[float]) -> None:
    size = min(len(one), len(two))
    arrays = [np.array([x[:size], x[:size][::-1]], np.float32) for x in (one, two)]
    found = row_divergence(*arrays)
    for row in range(2):
        expected = divergence(arrays[0][row].tolist(), arrays[1][row].tolist())
        assert found[row] == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert (found >= 0).all()


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
def test_row_divergence_of_nearly_equal_rows_is_exact(size: float) -> None:
    """Half the variance of the change, weighted by the probabilities; here they are all alike."""
    base = np.zeros((1, 1000), np.float32)
    change = np.random.default_rng(0).standard_normal((1, 1000)) * size
    moved = change.astype(np.float32)
    expected = moved.astype(np.float64).var() / 2
    assert row_divergence(moved, base)[0] == pytest.approx(expected, rel=size + 1e-4)


def test_a_shift_of_a_whole_row_is_no_divergence() -> None:
    base = np.array([[1.0, 2.0, 4.0]], np.float32)
    assert row_divergence(base + 8, base)[0] == 0


def test_elements_of_equal_importance_are_all_taken() -> None:
    base = torch.tensor([[1.0], [2.0], [3.0]])
    assert torch.equal(fuse_important(base, base + 1), base + 1)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1), st.floats(0, 5))
def test_approach_never_goes_farther_than_allowed(values: list[float], most: float) -> None:
    base, end = torch.tensor(values), torch.tensor(values[::-1])
    result = approach(base, end, most)
    assert ((result - base).abs() <= most * (1 + 1e-6) + 1e-6).all()
    near = (end - base).abs() <= most
    assert torch.equal(result[near], end[near])
