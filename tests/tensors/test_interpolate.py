from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.blocks import BLOCK
from evolve.tensors.interpolate import cosine, difference, lerp, slerp, weighted_sum

floats = st.floats(-100, 100, width=32, allow_nan=False)


def pairs(size: int = 6) -> st.SearchStrategy[tuple[list[float], list[float]]]:
    return st.integers(1, size).flatmap(
        lambda n: st.tuples(
            st.lists(floats, min_size=n, max_size=n), st.lists(floats, min_size=n, max_size=n)
        )
    )


def t32(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@given(pairs(), floats, floats)
def test_weighted_sum(vectors: tuple[list[float], list[float]], first: float, second: float) -> None:
    result = weighted_sum([t32(v) for v in vectors], [first, second])
    for got, a, b in zip(result.tolist(), *vectors, strict=True):
        assert got == pytest.approx(
            first * a + second * b, abs=1e-6 * (abs(first * a) + abs(second * b)) + 1e-30
        )


@given(pairs(), st.floats(0, 1))
def test_lerp_ends_and_bounds(vectors: tuple[list[float], list[float]], t: float) -> None:
    a, b = (t32(v) for v in vectors)
    assert torch.equal(lerp(a, b, 0.0), a + 0.0)
    assert torch.equal(lerp(a, b, 1.0), b + 0.0)
    slack = 1e-6 * torch.maximum(a.abs(), b.abs()) + 1e-30
    result = lerp(a, b, t)
    assert (result >= torch.minimum(a, b) - slack).all()
    assert (result <= torch.maximum(a, b) + slack).all()


def slerp_oracle(a: list[float], b: list[float], t: float) -> list[float]:
    """By rotation in the plane that a and the part of b at right angles to it span."""
    length_a, length_b = math.hypot(*a), math.hypot(*b)
    u = [x / length_a for x in a]
    along = sum(x * y / length_b for x, y in zip(u, b, strict=True))
    across = [y / length_b - along * x for x, y in zip(u, b, strict=True)]
    height = math.hypot(*across)
    angle = math.atan2(height, along)
    unit_b = [y / length_b for y in b]
    # Position on the unit circle for a and for b, each carried to its own length.
    share_a, share_b = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return [share_a * length_a * x + share_b * length_b * y for x, y in zip(u, unit_b, strict=True)]


@given(pairs(), st.floats(0, 1))
def test_slerp_against_its_definition(vectors: tuple[list[float], list[float]], t: float) -> None:
    a, b = vectors
    cos = cosine(t32(a), t32(b))
    if cos is None or abs(cos) > 0.999 or min(math.hypot(*a), math.hypot(*b)) < 1e-20:
        return
    expected = slerp_oracle(a, b, t)
    scale = 1e-5 * (math.hypot(*a) + math.hypot(*b))
    assert slerp(t32(a), t32(b), t).tolist() == pytest.approx(expected, abs=scale)


def test_slerp_keeps_the_length_of_equally_long_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(1000, generator=generator), dim=0) for _ in range(2))
    for t in (0.1, 0.5, 0.7):
        assert slerp(a, b, t).norm().item() == pytest.approx(1.0, abs=1e-5)
        angle = math.acos(float(a.double() @ b.double()))
        reached = float(slerp(a, b, t).double() @ a.double())
        assert math.acos(reached) == pytest.approx(t * angle, abs=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_of_parallel_opposite_and_zero_vectors_is_lerp(t: float) -> None:
    a = torch.tensor([1.0, -2.0, 3.0])
    for b in (2 * a, -a, torch.zeros(3)):
        assert torch.equal(slerp(a, b, t), lerp(a, b, t))
        assert torch.equal(slerp(b, a, t), lerp(b, a, t))


def test_slerp_neither_overflows_nor_underflows() -> None:
    for scale in (1e30, 1e-30):
        a, b = torch.tensor([scale, 0.0]), torch.tensor([0.0, scale])
        expected = [scale * math.sqrt(0.5)] * 2
        assert slerp(a, b, 0.5).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (1, 1)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    a, b = torch.full(shape, 2.0), torch.full(shape, 3.0)
    for result in (lerp(a, b, 0.5), slerp(a, b, 0.5)):
        assert result.shape == shape
        assert torch.equal(result, torch.full(shape, 2.5))
    assert torch.equal(difference(b, a), torch.full(shape, 1.0))


def test_inputs_stay_as_they_are_and_strides_do_not_matter() -> None:
    a = torch.arange(12.0).reshape(3, 4)
    b = torch.arange(12.0, 24.0).reshape(4, 3)
    kept = a.clone(), b.clone()
    result = weighted_sum([a, b.t()], [1.0, 2.0], start=a)
    assert torch.equal(result, 2 * a + 2 * b.t())
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_bits_do_not_depend_on_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5 * BLOCK + 3, generator=generator) for _ in range(2))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((slerp(a, b, 0.3), weighted_sum([a, b], [0.3, 0.7], start=a), difference(a, b)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_block_borders_are_seamless() -> None:
    a = torch.arange(2 * BLOCK + 1, dtype=torch.float32)
    assert np.array_equal(weighted_sum([a], [2.0], start=a).numpy(), 3 * a.numpy())
