from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.blocks import BLOCK
from tests.tensors.rules import disjoint_sum

# Multiples of 1/8 are added without rounding, so that ties between signs are exact.
eighths = st.integers(-16, 16).map(lambda n: n / 8)
tables = st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(
    lambda size: st.tuples(
        st.lists(st.lists(eighths, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]),
        st.lists(eighths, min_size=size[0], max_size=size[0]),
    )
)


def oracle(deltas: list[list[float]], weights: list[float], mean: bool) -> list[float]:
    """One place at a time, in words of the paper: elect the sign, then average those that agree."""
    result = []
    for place in range(len(deltas[0])):
        terms = [weight * delta[place] for weight, delta in zip(weights, deltas, strict=True)]
        elected = 1 if sum(terms) >= 0 else -1
        taking_part = [i for i, term in enumerate(terms) if term * elected > 0]
        total = sum(terms[i] for i in taking_part)
        if mean and taking_part:
            total /= sum(abs(weights[i]) for i in taking_part)
        result.append(total)
    return result


@given(tables, st.booleans())
def test_against_one_place_at_a_time(table: tuple[list[list[float]], list[float]], mean: bool) -> None:
    deltas, weights = table
    result = disjoint_sum([torch.tensor(d, dtype=torch.float32) for d in deltas], weights, mean=mean)
    assert result.tolist() == pytest.approx(oracle(deltas, weights, mean), rel=1e-6, abs=1e-6)


def test_a_tie_elects_plus() -> None:
    result = disjoint_sum([torch.tensor([2.0, -2.0]), torch.tensor([-2.0, 2.0])], [1.0, 1.0], mean=True)
    assert result.tolist() == [2.0, 2.0]


@given(tables)
def test_the_mean_is_never_larger_than_the_largest_delta(
    table: tuple[list[list[float]], list[float]],
) -> None:
    """A divisor of signed weights, as in mergekit, would fail: .50 and -.49 give 99 times the delta there."""
    deltas, weights = table
    result = disjoint_sum([torch.tensor(d, dtype=torch.float32) for d in deltas], weights, mean=True)
    limit = torch.tensor(deltas).abs().amax(0)
    assert (result.abs() <= limit * (1 + 1e-6)).all()


def test_opposed_weights_are_not_amplified() -> None:
    result = disjoint_sum([torch.tensor([1.0]), torch.tensor([-1.0])], [0.50, -0.49], mean=True)
    assert result.item() == pytest.approx(1.0)


def test_many_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(2 * BLOCK + 11, generator=generator) for _ in range(3)]
    weights = [0.5, 1.0, -0.25]
    whole = disjoint_sum(deltas, weights, mean=True)
    for start in (0, BLOCK - 5, 2 * BLOCK - 5):
        part = [delta[start : start + 20].tolist() for delta in deltas]
        assert whole[start : start + 20].tolist() == pytest.approx(oracle(part, weights, True), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    result = disjoint_sum([torch.full(shape, 2.0), torch.full(shape, -1.0)], [1.0, 1.0], mean=True)
    assert torch.equal(result, torch.full(shape, 2.0))
    assert not disjoint_sum([torch.zeros(shape)], [0.0], mean=True).any()


def test_nan_is_not_hidden() -> None:
    assert torch.isnan(
        disjoint_sum([torch.tensor([float("nan")]), torch.tensor([1.0])], [1, 1], mean=True)
    ).all()
