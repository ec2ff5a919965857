"""Oracle: the papers' formulas in float64, one element after the other."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors import lora
from evolve.tensors.lora import add_low_rank, set_lengths

SHAPES = [(3, 4, 2), (1, 1, 1), (5, 1, 3), (1, 7, 2), (300, 200, 8), (2, 40_000, 3), (40_000, 2, 3)]


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(weight, left, right, scale):
    return weight.double().numpy() + scale * (left.double().numpy() @ right.double().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("height", "width", "rank"), SHAPES)
def test_low_rank(height, width, rank, dtype):
    weight = rand(height, width, dtype=dtype)
    left, right = rand(height, rank, seed=1, dtype=dtype), rand(rank, width, seed=2)
    before = weight.clone()
    got = add_low_rank(weight, left, right, 0.7)
    want = reference(weight, left, right, 0.7)
    assert got.dtype == torch.float32
    assert torch.equal(weight, before)
    bound = np.abs(weight.double().numpy()) + 0.7 * (left.double().abs() @ right.double().abs()).numpy()
    assert np.all(np.abs(got.numpy() - want) <= 1e-6 * bound)


def test_transposed_views_give_the_same_bits():
    weight, left, right = rand(64, 96), rand(64, 4, seed=1), rand(4, 96, seed=2)
    got = add_low_rank(weight.T.contiguous().T, left.T.contiguous().T, right.T.contiguous().T, 2.0)
    assert torch.equal(got, add_low_rank(weight, left, right, 2.0))


@pytest.mark.parametrize("shape", [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_nothing(shape):
    height, width, rank = shape
    weight = rand(height, width)
    got = add_low_rank(weight, rand(height, rank), rand(rank, width), 1.0)
    assert torch.equal(got, weight)
    assert set_lengths(weight, torch.ones(height), dim=1).shape == weight.shape


@pytest.mark.parametrize(
    ("weight", "left", "right"),
    [((3, 4), (3, 2), (3, 4)), ((3, 4), (4, 2), (2, 4)), ((3, 4), (3, 2), (2, 3)), ((3,), (3, 2), (2, 3))],
)
def test_shapes_that_do_not_fit(weight, left, right):
    with pytest.raises(ValueError, match=r"do not give|expected a matrix"):
        add_low_rank(torch.zeros(weight), torch.zeros(left), torch.zeros(right), 1.0)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1), st.integers(0, 99))
def test_lengths(height, width, dim, seed):
    weight = rand(height, width, seed=seed)
    lengths = rand((height, width)[1 - dim], seed=seed + 1).abs() + 0.1
    got = set_lengths(weight, lengths, dim=dim)
    rows = weight if dim == 1 else weight.T
    made = got if dim == 1 else got.T
    for row, new, length in zip(rows.tolist(), made.tolist(), lengths.tolist(), strict=True):
        norm = math.sqrt(math.fsum(x * x for x in row))
        assert new == pytest.approx([x * length / norm for x in row], rel=1e-6)


def test_own_lengths_change_nothing():
    weight = rand(50, 700)
    for dim in (0, 1):
        lengths = weight.double().norm(dim=dim).float()
        assert torch.allclose(set_lengths(weight, lengths, dim=dim), weight, rtol=1e-6, atol=0)


def test_extreme_lengths():
    weight = torch.tensor([[3e38, 3e38], [1e-45, 0.0], [0.0, 0.0]])
    got = set_lengths(weight, torch.tensor([5.0, 2.0, 7.0]), dim=1)
    assert got[0].tolist() == pytest.approx([5 / math.sqrt(2)] * 2)
    assert torch.isfinite(got[0]).all()
    assert got[2].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="lengths"):
        set_lengths(weight, torch.ones(2), dim=1)


THREADS = """
import hashlib, sys, torch
from evolve.tensors.lora import add_low_rank, set_lengths
torch.set_num_threads(int(sys.argv[1]))
digest = hashlib.sha256()
for height, width, rank in [(33, 65, 128), (700, 900, 16), (3, 70_000, 5)]:
    draw = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(s, generator=draw) for s in ((height, width), (height, rank), (rank, width)))
    w = add_low_rank(w, a, b, 0.3)
    digest.update(w.numpy().tobytes())
    for dim in (0, 1):
        lengths = torch.rand((height, width)[1 - dim], generator=draw)
        digest.update(set_lengths(w, lengths, dim=dim).numpy().tobytes())
print(digest.hexdigest())
"""


def test_the_same_bits_on_any_number_of_threads():
    def run(threads):
        done = subprocess.run(
            [sys.executable, "-c", THREADS, str(threads)], capture_output=True, text=True, check=True
        )
        return done.stdout

    assert run(1) == run(3)


def test_tiles_cover_everything_once():
    for shape in [(1, 1), (7, 100_000), (100_000, 7), (500, 500), (0, 3), (3, 0)]:
        seen = torch.zeros(shape)
        for tile in lora._tiles(torch.Size(shape)):
            assert seen[tile].numel() < 1 << 15
            seen[tile] += 1
        assert torch.equal(seen, torch.ones(shape))
