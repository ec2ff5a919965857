"""Rows of tables against sums written out in float64 and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.embeddings import (
    deviation,
    holds_exactly,
    mean_length,
    mean_of_owners,
    mean_row,
    normal_rows,
    of_length,
    selected,
    weighted_rows,
)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 4), (5, 0), (5, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_selected_rows_keep_their_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    table = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    result = selected(table, rows(4, -1, 0, 0), dtype)
    assert result.dtype == dtype
    assert torch.equal(result, torch.stack([table[4], torch.zeros_like(table[0]), table[0], table[0]]))
    result.zero_()
    assert table[0].numel() == 0 or bool(table[0].any()), "the table was written to"


def test_no_rows_at_all() -> None:
    table = torch.ones(3, 2)
    assert selected(table, rows(), torch.float32).shape == (0, 2)
    assert torch.equal(selected(table, rows(-1, -1), torch.float32), torch.zeros(2, 2))
    assert selected(torch.ones(0, 2), rows(-1), torch.float32).tolist() == [[0.0, 0.0]]
    assert mean_row(table, rows()).tolist() == [0.0, 0.0]
    assert mean_of_owners([table], [rows()]).shape == (0, 2)


def test_a_row_beyond_the_table_is_an_error_and_never_a_wrong_row() -> None:
    table = torch.ones(3, 2)
    for call in (
        lambda: selected(table, rows(0, 3), torch.float32),
        lambda: mean_of_owners([table], [rows(3)]),
        lambda: mean_row(table, rows(3)),
        lambda: mean_row(table, rows(-1)),
    ):
        with pytest.raises(IndexError):
            call()


@given(st.data())
def test_the_mean_of_owners_is_that_of_exact_arithmetic(data: st.DataObject) -> None:
    count, width, models = (data.draw(st.integers(1, high)) for high in (4, 3, 4))
    numbers = st.floats(-1e4, 1e4, width=32)
    tables, owners = [], []
    for _ in range(models):
        size = data.draw(st.integers(1, 4))
        tables.append([[data.draw(numbers) for _ in range(width)] for _ in range(size)])
        owners.append([data.draw(st.integers(-1, size - 1)) for _ in range(count)])
    result = mean_of_owners([torch.tensor(table) for table in tables], [rows(*own) for own in owners])
    for token in range(count):
        held = [table[own[token]] for table, own in zip(tables, owners, strict=True) if own[token] >= 0]
        for column in range(width):
            exact = sum((Fraction(row[column]) for row in held), Fraction()) / max(len(held), 1)
            bound = 1e-15 * sum(abs(row[column]) for row in held)
            assert abs(result[token, column].item() - float(exact)) <= bound
            if len(held) == 1:
                assert result[token, column].item() == held[0][column]


def test_the_mean_row_over_many_blocks() -> None:
    table = torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    chosen = np.arange(0, 5000, 2)
    expected = [math.fsum(table[::2, column].tolist()) / 2500 for column in range(3)]
    assert np.allclose(mean_row(table, chosen).numpy(), expected, rtol=0, atol=1e-14)
    bias = table[:, 0].contiguous()
    assert math.isclose(mean_row(bias, chosen).item(), expected[0], abs_tol=1e-14)


def test_the_bits_do_not_depend_on_threads() -> None:
    table = torch.randn(4000, 64, generator=torch.Generator().manual_seed(3))
    chosen = np.arange(4000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((mean_row(table, chosen), mean_of_owners([table, table], [chosen, chosen])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for pair in found for one, other in zip(pair, found[0], strict=True))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30), st.integers(1, 5))
def test_mean_rows_of_a_head_are_never_chosen_and_take_little(logits: list[float], padding: int) -> None:
    """Hewitt's bound: beside n tokens, m rows that are their mean take at most m / (n + m)."""
    head = torch.tensor(logits, dtype=torch.float64)[:, None]
    mean = mean_row(head, np.arange(len(logits)))
    every = torch.cat([head[:, 0], mean.repeat(padding)])
    assert every.max() <= head.max() + 1e-12
    share = torch.softmax(every, 0)[len(logits) :].sum().item()
    assert share <= padding / (len(logits) + padding) + 1e-12


def test_which_type_holds_which() -> None:
    for source in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for target in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            probe = torch.tensor([1 / 3, 1e-7, 65504.0, 3e38, 1e-40], dtype=torch.float64).to(source)
            probe = probe[torch.isfinite(probe)]
            kept = torch.equal(probe.to(target).double(), probe.double())
            names = (str(kind).removeprefix("torch.") for kind in (source, target))
            assert holds_exactly(*names) == kept, (source, target)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_on_a_gpu_give_the_bits_of_the_cpu(dtype: torch.dtype) -> None:
    table = torch.randn((3000, 16), generator=torch.Generator().manual_seed(4)).to(dtype)
    chosen = np.arange(0, 3000, 3)
    moved = table.cuda()
    assert torch.equal(selected(moved, chosen, torch.float32).cpu(), selected(table, chosen, torch.float32))
    assert torch.equal(mean_row(moved, chosen), mean_row(table, chosen))
    mixed = mean_of_owners([moved, table], [chosen, chosen[::-1].copy()])
    assert torch.equal(mixed, mean_of_owners([table, table], [chosen, chosen[::-1].copy()]))


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 2)])
def test_weighted_rows_against_sums(shape: tuple[int, ...]) -> None:
    table = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    parts = [
        (rows(0, 5, 5), np.array([1.0, 2.0, 1.0])),
        (rows(3), np.array([0.25])),
        (rows(), np.zeros(0)),
        (rows(1, 2), np.zeros(2)),
    ]
    found = weighted_rows(table, parts)
    exact = table.double()
    assert torch.allclose(found[0], (exact[0] + 3 * exact[5]) / 4, rtol=1e-12)
    assert torch.equal(found[1], exact[3])
    assert not found[2:].any()
    with pytest.raises(IndexError):
        weighted_rows(table, [(rows(6), np.ones(1))])


def test_deviation_and_length_look_at_the_given_rows_alone() -> None:
    table = torch.randn((3000, 4), generator=torch.Generator().manual_seed(3)) + 100
    some = np.arange(0, 3000, 2)
    exact = table.double()[::2]
    assert torch.allclose(deviation(table, some), exact.std(0, correction=0), rtol=1e-12)
    assert math.isclose(mean_length(table, some), float(exact.norm(dim=1).mean()), rel_tol=1e-12)
    assert not deviation(table, rows(7)).any() and mean_length(table, rows()) == 0


def test_rows_of_one_length_keep_their_direction_and_zeros() -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], dtype=torch.float64)
    assert torch.allclose(
        of_length(values, 2.0), torch.tensor([[1.2, 1.6], [0, 0], [2, 0]], dtype=torch.float64)
    )


def test_normal_rows_are_normal_and_depend_on_their_key_alone() -> None:
    many = normal_rows([*range(4000)], 5)
    assert torch.equal(normal_rows([17, 3], 5), many[[17, 3]])
    flat = many.reshape(-1)
    assert abs(float(flat.mean())) < 0.03 and abs(float(flat.std()) - 1) < 0.03
    assert abs(float((flat.abs() < 1).double().mean()) - 0.6827) < 0.02
    assert bool(torch.isfinite(normal_rows([2**64 - 1], 1000)).all())
