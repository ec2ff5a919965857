from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.singular import merge_singular
from tests.stages.merge import reference_beyond as ref


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> torch.Tensor:
    q, _ = torch.linalg.qr(noise(size, size, seed=seed).double())
    return q


def close(found: torch.Tensor, expected: Any, scale: float = 1.0) -> bool:
    return np.allclose(found.double().numpy(), np.asarray(expected), atol=3e-6 * scale)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([None, 0.5, 0.8, 1.0]),
    st.integers(0, 99),
)
def test_the_formula_of_the_paper(
    rows: int, columns: int, count: int, share: float | None, seed: int
) -> None:
    if min(rows, columns) < (count if share is None else 2):
        return  # fewer singular values than models: one each, which the formula does not know
    deltas = [noise(rows, columns, seed=1000 * seed + i) for i in range(count)]
    expected = ref.tsv([delta.double().numpy() for delta in deltas], share)
    kept = sum(max(1, int((share or 1 / count) * min(rows, columns))) for _ in deltas)
    if share is not None and kept > min(rows, columns):
        return  # more vectors than directions: near-dependent columns, compared below for what they must be
    assert close(merge_singular(deltas, share), expected, 20)


def test_one_matrix_is_itself() -> None:
    delta = noise(12, 7)
    assert close(merge_singular([delta]), delta)
    assert close(merge_singular([delta], 1.0), delta)


def test_orthogonal_task_vectors_add_up() -> None:
    """No direction is shared: nothing is pulled apart. Ranks far below the share of each, as of LoRAs."""
    u, v = orthogonal(12, 1), orthogonal(10, 2)
    values = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    deltas = [
        ((u[:, part] * values) @ v[:, part].T).float() for part in (slice(0, 3), slice(3, 6), slice(6, 9))
    ]
    assert close(merge_singular(deltas), sum(deltas), 3)
    assert close(merge_singular(deltas, 1.0), sum(deltas), 3)


def test_each_keeps_its_largest_singular_values() -> None:
    u, v = orthogonal(12, 1), orthogonal(12, 2)
    values = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    deltas = [((u[:, part] * values) @ v[:, part].T).float() for part in (slice(0, 4), slice(4, 8))]
    kept = [((u[:, part] * values[:2]) @ v[:, part].T) for part in (slice(0, 2), slice(4, 6))]
    assert close(merge_singular(deltas, 2 / 12), sum(kept), 3)
    assert not merge_singular(deltas, 0.0).any()


def test_what_is_shared_is_pulled_apart_and_never_counted_twice() -> None:
    """The merged matrix has the singular values of all inputs, whatever they share."""
    generator = noise(30, 20, seed=5)
    deltas = [generator + 0.3 * noise(30, 20, seed=6 + i) for i in range(2)]
    values = torch.cat([torch.linalg.svdvals(delta.double())[:10] for delta in deltas]).sort(descending=True)[
        0
    ]
    merged = torch.linalg.svdvals(merge_singular(deltas).double())
    assert torch.allclose(merged, values, atol=1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_equal_matrices_give_that_matrix(count: int) -> None:
    """The paper's formula divides zero by zero here; equal vectors are one, and the shares are averaged."""
    delta = noise(9, 6)
    assert close(merge_singular([delta] * count, 1.0), delta, 5)
    u, s, vt = torch.linalg.svd(delta.double(), full_matrices=False)
    kept = 6 // count
    assert close(merge_singular([delta] * count), (u[:, :kept] * s[:kept]) @ vt[:kept], 5)


def test_rounding_errors_of_a_low_rank_have_no_part() -> None:
    """A LoRA of rank 2, with and without the rounding of float32: the same result."""
    one = noise(40, 2, seed=1).double() @ noise(2, 30, seed=2).double()
    two = noise(40, 2, seed=3).double() @ noise(2, 30, seed=4).double()
    exact = ref.tsv([one.numpy(), two.numpy()], 2 / 30)
    assert close(merge_singular([one.float(), two.float()], 0.5), exact, 30)


@given(st.integers(0, 50))
def test_rotations_go_through(seed: int) -> None:
    deltas = [noise(8, 6, seed=seed + i) for i in range(2)]
    p, q = orthogonal(8, seed + 7), orthogonal(6, seed + 8)
    turned = merge_singular([(p @ delta.double() @ q).float() for delta in deltas])
    assert close(turned, p @ merge_singular(deltas).double() @ q, 10)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (1, 7), (7, 1), (2, 2)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    deltas = [noise(*shape, seed=i) for i in range(3)]
    found = merge_singular(deltas)
    assert found.shape == shape
    assert torch.isfinite(found).all()
    assert not merge_singular([torch.zeros(shape)] * 2).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_result(bad: float) -> None:
    deltas = [noise(6, 5, seed=i) for i in range(2)]
    deltas[1][2, 2] = bad
    assert torch.isnan(merge_singular(deltas)).all()


def test_extreme_sizes() -> None:
    for factor in (1e-30, 1e30):
        deltas = [noise(9, 6, seed=i) for i in range(2)]
        scaled = merge_singular([delta * factor for delta in deltas])
        assert torch.allclose(scaled / factor, merge_singular(deltas), atol=1e-5)


def test_same_bits_with_any_number_of_threads() -> None:
    deltas = [noise(300, 200, seed=i) for i in range(3)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(merge_singular(deltas))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
