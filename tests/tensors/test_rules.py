from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.tensors.blocks import BLOCK
from evolve.tensors.selection import kept
from tests.tensors.rules import drop, trim

floats = st.floats(-1e3, 1e3, width=32, allow_nan=False).map(lambda x: x + 0.0)
vectors = st.lists(st.one_of(floats, st.sampled_from([-1.0, 0.0, 1.0, 2.0])), max_size=40)
densities = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1))


def trim_oracle(values: list[float], density: float) -> list[float]:
    """Sort by magnitude, then by place, and keep the first."""
    count = 0 if density == 0 or not values else max(1, int(density * len(values)))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    stay = set(order[:count])
    return [value if i in stay else 0.0 for i, value in enumerate(values)]


@given(vectors, densities)
def test_trim_keeps_the_largest_and_of_equal_ones_the_first(values: list[float], density: float) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    expected = torch.tensor(trim_oracle(delta.tolist(), density), dtype=torch.float32)
    assert torch.equal(trim(delta, density), expected)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.999])
def test_trim_is_exact_with_many_ties_over_several_blocks(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randint(-5, 6, (3 * BLOCK + 17,), generator=generator).float()
    order = np.lexsort((np.arange(delta.numel()), -np.abs(delta.numpy().astype(np.float64))))
    expected = np.zeros(delta.numel(), np.float32)
    stay = order[: int(density * delta.numel())]
    expected[stay] = delta.numpy()[stay]
    assert torch.equal(trim(delta.clone(), density), torch.from_numpy(expected))


def test_trim_rescale_restores_the_sum_of_magnitudes() -> None:
    delta = torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    trimmed = trim(delta.clone(), 0.3, rescale=True)
    assert trimmed.abs().double().sum().item() == pytest.approx(delta.abs().double().sum().item(), rel=1e-6)
    assert int((trimmed != 0).sum()) == kept(350, 0.3)


def test_trim_does_not_hide_what_is_not_finite() -> None:
    assert torch.isnan(trim(torch.tensor([1.0, float("nan"), 3.0, 4.0]), 0.5)).any()
    assert not torch.isfinite(trim(torch.tensor([1.0, float("inf"), 3.0, 4.0]), 0.5)).all()


@pytest.mark.parametrize(
    ("count", "density", "expected"),
    [(10, 0.0, 0), (10, 1e-9, 1), (10, 0.5, 5), (0, 0.5, 0), (1, 0.5, 1), (3, 1, 3)],
)
def test_kept(count: int, density: float, expected: int) -> None:
    assert kept(count, density) == expected


def draw_words(seed: int, count: int) -> list[int]:
    """The words of evolve/tensors/random.py, in plain integers, one element after the other."""
    return [draw_word(seed, element) for element in range(count)]


def draw_word(seed: int, element: int) -> int:
    block, lane = divmod(element, 1024)
    before, between, after, _ = _philox(block, seed)
    mask = (1 << 32) - 1
    x = (lane * 0x9E3779B9 + before) & mask
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15) ^ between) * 0x846CA68B) & mask
    return x ^ (x >> 16) ^ after


def _philox(counter: int, seed: int) -> list[int]:
    """Philox-4x32-10 after Salmon et al. 2011."""
    mask = (1 << 32) - 1
    c = [counter, 0, 0, 0]
    key = [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ key[0], b & mask, (a >> 32) ^ c[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return c


@given(st.integers(0, 2**64 - 1), st.integers(0, 300), densities)
@settings(max_examples=50)
def test_drop_takes_the_words_of_its_seed(seed: int, count: int, density: float) -> None:
    stay = [word < round(density * 2**32) for word in draw_words(seed, count)]
    result = drop(torch.ones(count), density, seed, rescale=False)
    assert [value == 1.0 for value in result.tolist()] == stay


def test_drop_has_pinned_bits() -> None:
    """A changed mask would silently change every DARE recipe that was ever exported."""
    mask = drop(torch.ones(3 * BLOCK + 5), 0.25, 42, rescale=False).numpy().astype(np.uint8).tobytes()
    assert hashlib.sha256(mask).hexdigest()[:16] == "945dc47c691cd1a7"


def test_drop_depends_on_place_alone_not_on_the_length() -> None:
    long = drop(torch.ones(2 * BLOCK + 9), 0.5, 7)
    assert torch.equal(drop(torch.ones(BLOCK + 1), 0.5, 7), long[: BLOCK + 1])


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_drop_divides_by_the_density_and_is_unbiased(density: float) -> None:
    """The mean over seeds is right on 16 elements, where matching the L1 norm, as in mergekit, is biased."""
    delta = torch.linspace(0.5, 2.0, 16)
    draws = torch.stack([drop(delta.clone(), density, seed) for seed in range(4000)]).double()
    kept_values = draws[:, 3][draws[:, 3] != 0]
    assert torch.allclose(kept_values, (delta[3].double() / density).expand_as(kept_values), rtol=1e-6)
    sigma = delta.double() * ((1 - density) / density / 4000) ** 0.5
    assert ((draws.mean(0) - delta.double()).abs() < 4.5 * sigma).all()


def test_drop_seeds_are_independent() -> None:
    first, second = (drop(torch.ones(100_000), 0.5, seed) > 0 for seed in (1, 2))
    assert abs((first & second).double().mean().item() - 0.25) < 0.01


@pytest.mark.parametrize("density", [0.0, 1e-12, 2e-10, 1 - 1e-12, 1.0])
def test_drop_at_the_ends_is_finite(density: float) -> None:
    result = drop(torch.full((5000,), 1e20), density, 3)
    assert torch.isfinite(result).all()
    if density in (0.0, 1e-12):
        assert not result.any()
    if density >= 1 - 1e-12:
        assert torch.equal(result, torch.full((5000,), 1e20))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (1, 1)])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_odd_shapes(shape: tuple[int, ...], density: float) -> None:
    for result in (trim(torch.full(shape, 2.0), density), drop(torch.full(shape, 2.0), density, 1)):
        assert result.shape == shape
        assert torch.isfinite(result).all()
