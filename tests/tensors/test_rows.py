from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.blocks import BLOCK
from evolve.tensors.magnitude import between, largest, row_ranks
from evolve.tensors.rows import (
    combine,
    combine_on_device,
    dots,
    inverse,
    lengths,
    matrix,
    sum_lengths,
    tiles,
)

SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 3, 4), (5, 0), (0, 5), (6, 1), (2, BLOCK + 3), (BLOCK + 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_has_the_vectors_along_the_last_axis(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    assert matrix(tensor).shape == (1, tensor.numel())
    expected = (1, tensor.numel()) if len(shape) < 2 else (math.prod(shape[:-1]), shape[-1])
    view = matrix(tensor, whole=False)
    assert view.shape == expected
    view[...] = 5
    assert (tensor == 5).all()


@given(st.integers(0, 300), st.integers(0, 300))
def test_tiles_cover_a_matrix_once(rows: int, width: int) -> None:
    seen = np.zeros((rows, width), int)
    for tile in tiles(rows, width):
        seen[tile] += 1
        assert seen[tile].size <= max(BLOCK, width)
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("whole", [False, True])
def test_lengths_and_sums(shape: tuple[int, ...], whole: bool) -> None:
    one, two, start = (torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in range(3))
    views = [matrix(t, whole=whole) for t in (one, two)]
    weights = [np.linspace(-1, 1, len(view)) for view in views]
    exact = [view.astype(np.float64) for view in views]
    summed = weights[0][:, None] * exact[0] + weights[1][:, None] * exact[1]
    assert np.allclose(lengths(views[0]), np.linalg.norm(exact[0], axis=1), rtol=1e-14)
    assert np.allclose(sum_lengths(views, weights), np.linalg.norm(summed, axis=1), rtol=1e-12)
    result = combine([one, two], weights, start=start, whole=whole)
    expected = torch.from_numpy(summed).reshape(shape) + start
    assert torch.equal(result, expected.float())
    assert torch.equal(
        combine([one, two], weights, whole=whole), torch.from_numpy(summed).reshape(shape).float()
    )
    for begin in (start, None):
        expected = combine([one, two], weights, start=begin, whole=whole)
        assert torch.equal(combine_on_device([one, two], weights, start=begin, whole=whole), expected)
    if whole:
        products = dots([*views, views[0]])
        flats = [exact[0].ravel(), exact[1].ravel(), exact[0].ravel()]
        assert np.allclose(products, [[np.dot(a, b) for b in flats] for a in flats], rtol=1e-12, atol=1e-12)
        assert np.array_equal(products, products.T)


def test_sums_that_nearly_cancel_out_are_exact() -> None:
    one = torch.tensor([1.0, 3.0])
    result = combine([one, one], [np.array([1e9 + 1.0]), np.array([-1e9])], start=one)
    assert torch.equal(result, 2 * one)


def test_no_square_overflows_or_vanishes() -> None:
    for size in (1e-45, 1e-30, 1e38):
        value = torch.tensor([size]).item()
        assert lengths(matrix(torch.full((4,), size)))[0] == pytest.approx(2 * value)


def test_inverse() -> None:
    assert inverse(np.array([4.0, 0.0, 0.5])).tolist() == [0.25, 0.0, 2.0]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3e38]) | st.floats(0, 10, width=32)),
    st.integers(-1, 30),
    st.integers(0, 30),
)
def test_order_is_by_size_and_then_by_place(values: list[float], first: int, count: int) -> None:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    for kind in (np.float32, np.float64):
        numbers = np.array(values, kind) + 0.0
        found = between(numbers, first, first + count)
        assert set(np.flatnonzero(found).tolist()) == set(order[max(0, first) : max(0, first + count)])
        assert set(np.flatnonzero(largest(numbers, count)).tolist()) == set(order[:count])


def test_nan_is_the_largest() -> None:
    values = np.array([1.0, np.nan, 2.0], np.float32)
    assert largest(values, 1).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (9,), (3, 7), (5, 1), (2, 3, 4), (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ranks_are_those_of_a_stable_sort_in_each_row(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of equal magnitudes the first has the higher rank. In eighths, so that many are equal."""
    generator = torch.Generator().manual_seed(4)
    one, two = ((torch.randn(shape, generator=generator) * 8).round().div(8).to(dtype) for _ in range(2))
    ranks = row_ranks(one, two)
    assert ranks.shape == shape
    assert ranks.dtype == torch.uint16
    delta = (one.float() - two.float()).abs()
    if delta.numel() and delta.ndim:
        expected = delta.flip(-1).argsort(dim=-1, stable=True).argsort(dim=-1).flip(-1)
        assert torch.equal(ranks.long(), expected)
    else:
        assert not ranks.long().any()


def test_ranks_of_very_long_rows_need_more_bits() -> None:
    values = torch.arange(70_000, dtype=torch.float32)
    ranks = row_ranks(values, torch.zeros(70_000))
    assert ranks.dtype == torch.int32
    assert torch.equal(ranks.long(), torch.arange(70_000))
