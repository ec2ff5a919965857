"""The words by which entries stay: are they as independent as random ones, within a block and across?

All are sums over many seeds, as multiples of their standard deviation if words were independent. Seeds are
fixed, so nothing here fails by chance.
"""

from __future__ import annotations

import numpy as np
import pytest

from evolve.tensors.random import BLOCK, draws

SEEDS = 800
LAGS = (1, 2, 3, 4, 7, 8, 16, 32, 64, 128, 255, 256, 512, BLOCK, BLOCK + 1)
LIMIT = 4.5


@pytest.fixture(scope="module")
def words():
    return np.stack([draws(seed * 0x9E3779B97F4A7C15 % 2**64, 0, 4 * BLOCK) for seed in range(SEEDS)])


def _centred(words, share):
    """-share where an entry goes, 1 - share where it stays."""
    return (words < share * 2**32).astype(np.float32) - np.float32(share)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_and_its_spread_are_those_of_independent_draws(words, share):
    kept = _centred(words, share).astype(np.float64).reshape(-1, BLOCK).sum(axis=1)
    variance = BLOCK * share * (1 - share)
    assert abs(kept.sum()) < LIMIT * np.sqrt(kept.size * variance)
    # The square of a nearly normal sum varies by sqrt(2) times its mean.
    assert abs(np.mean(kept**2) / variance - 1) < LIMIT * np.sqrt(2 / kept.size)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_entries_of_a_tensor_do_not_know_of_each_other(words, share):
    kept = _centred(words, share)
    unit = share * (1 - share)
    for lag in LAGS:
        products = kept[:, lag:] * kept[:, :-lag]
        assert abs(products.sum(dtype=np.float64)) < LIMIT * unit * np.sqrt(products.size), lag
    triples = kept[:, 2:] * kept[:, 1:-1] * kept[:, :-2]
    assert abs(triples.sum(dtype=np.float64)) < LIMIT * unit**1.5 * np.sqrt(triples.size)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_seeds_do_not_know_of_each_other(words, share):
    """Neither do seeds that differ in one bit."""
    unit = share * (1 - share)
    near = np.stack([draws(seed, 0, 4 * BLOCK) for seed in [0, *(1 << bit for bit in range(64))]])
    for some in (words, near):
        kept = _centred(some, share)
        products = kept[1:] * kept[:-1]
        assert abs(products.sum(dtype=np.float64)) < LIMIT * unit * np.sqrt(products.size)
        first = kept[:1] * kept[1:]
        assert abs(first.sum(dtype=np.float64)) < LIMIT * unit * np.sqrt(first.size)


@pytest.mark.parametrize("bit", [0, 1, 7, 8, 15, 16, 24, 31])
def test_each_bit_is_random(words, bit):
    ones = ((words >> np.uint32(bit)) & np.uint32(1)).astype(np.float32) - np.float32(0.5)
    assert abs(ones.sum(dtype=np.float64)) < LIMIT * 0.5 * np.sqrt(ones.size)
    for lag in (1, 2, 4, 256, 512):
        products = ones[:, lag:] * ones[:, :-lag]
        assert abs(products.sum(dtype=np.float64)) < LIMIT * 0.25 * np.sqrt(products.size), lag


def test_values_are_spread_evenly(words):
    """Chi square of 4096 equal bins: mean 4095, standard deviation about 90."""
    counts = np.bincount((words >> np.uint32(20)).ravel(), minlength=4096)
    expected = words.size / 4096
    assert abs(((counts - expected) ** 2 / expected).sum() - 4095) < LIMIT * np.sqrt(2 * 4095)
