from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.averages import fisher_average, regression_average
from evolve.tensors.blocks import BLOCK
from tests.stages.merge import reference_beyond as ref


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def average(tensors: Any, fishers: Any, weights: Any = None, **settings: Any) -> torch.Tensor:
    count = len(tensors)
    return fisher_average(
        tensors,
        fishers,
        weights or [1.0] * count,
        factors=settings.get("factors", [1.0] * count),
        floors=settings.get("floors", [0.0] * count),
    )


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 99))
def test_fisher_average(count: int, size: int, seed: int) -> None:
    tensors = [noise(size, seed=10 * seed + i) for i in range(count)]
    fishers = [noise(size, seed=10 * seed + 5 + i).square() for i in range(count)]
    weights = [0.5 + i for i in range(count)]
    expected = ref.fisher(
        [t.double().numpy() for t in tensors], [f.double().numpy() for f in fishers], weights
    )
    assert np.allclose(average(tensors, fishers, weights).numpy(), expected, rtol=1e-6, atol=1e-7)


def test_without_information_it_is_the_weighted_mean() -> None:
    tensors = [noise(50, seed=i) for i in range(2)]
    fishers = [torch.zeros(50), torch.zeros(50)]
    fishers[0][:10] = 3.0
    for floors in ([0.0, 0.0], [1e-6, 1e-6]):
        found = average(tensors, fishers, [1.0, 3.0], floors=floors)
        assert torch.allclose(found[10:], (0.25 * tensors[0] + 0.75 * tensors[1])[10:], atol=1e-7)
        assert torch.allclose(found[:10], tensors[0][:10], atol=1e-5)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_information_of_any_size_counts(size: float) -> None:
    """Squares of small gradients underflow in float32 products: 1e-30 against 1e-30 is not nothing."""
    tensors = [torch.tensor([1.0]), torch.tensor([4.0])]
    fishers = [torch.tensor([size]), torch.tensor([size]) * 2]
    assert average(tensors, fishers).item() == pytest.approx(3.0, rel=1e-6)


def test_nan_in_the_information_reaches_the_result() -> None:
    fishers = [torch.ones(4), torch.ones(4)]
    fishers[1][2] = float("nan")
    found = average([noise(4), noise(4, seed=1)], fishers)
    assert torch.isnan(found).tolist() == [False, False, True, False]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2 * BLOCK + 3,)])
def test_shapes_and_equal_models(shape: tuple[int, ...]) -> None:
    tensor = noise(*shape)
    assert torch.equal(average([tensor, tensor], [tensor.square(), tensor.abs()]), tensor)


# Regression.


def layers(rows: int, outs: int, count: int, tokens: int, seed: int = 0) -> tuple[Any, Any]:
    inputs = [noise(tokens, rows, seed=100 * seed + i) @ noise(rows, rows, seed=i) for i in range(count)]
    return inputs, [noise(rows, outs, seed=100 * seed + 50 + i) for i in range(count)]


def gram(inputs: torch.Tensor) -> torch.Tensor:
    wide = inputs.double()
    return (wide.T @ wide / len(inputs)).float()


@given(
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.integers(0, 99),
)
def test_regression_average(rows: int, outs: int, count: int, keep: float, seed: int) -> None:
    inputs, matrices = layers(rows, outs, count, 40, seed)
    grams = [gram(x) for x in inputs]
    weights = [1.0 + i for i in range(count)]
    expected = ref.regmean(
        [m.double().numpy() for m in matrices], [g.double().numpy() for g in grams], weights, keep
    )
    found = regression_average(matrices, grams, weights, keep=keep)
    assert np.allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_it_is_the_regression_on_the_pooled_inputs_and_outputs() -> None:
    inputs, matrices = layers(6, 4, 3, 60)
    outputs = [x.double() @ m.double() for x, m in zip(inputs, matrices, strict=True)]
    pooled = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(outputs)).solution
    found = regression_average(matrices, [gram(x) for x in inputs], [1.0] * 3, keep=1.0)
    assert torch.allclose(found.double(), pooled, atol=1e-5)


def test_more_tokens_of_one_model_are_no_vote() -> None:
    """Products are per token: the weight decides, not the length of the text."""
    inputs, matrices = layers(5, 3, 2, 40)
    twice = [gram(inputs[0]), gram(torch.cat([inputs[1]] * 4))]
    once = [gram(x) for x in inputs]
    both = [regression_average(matrices, grams, [1.0, 1.0], keep=0.9) for grams in (once, twice)]
    assert torch.allclose(both[0], both[1], atol=1e-5)


@pytest.mark.parametrize("keep", [0.9, 1.0])
def test_features_that_are_never_on_get_the_mean(keep: float) -> None:
    inputs, matrices = layers(6, 3, 2, 40)
    for x in inputs:
        x[:, 2] = 0
    found = regression_average(matrices, [gram(x) for x in inputs], [1.0, 3.0], keep=keep)
    assert torch.allclose(found[2], 0.25 * matrices[0][2] + 0.75 * matrices[1][2], atol=1e-6)
    rest = [0, 1, 3, 4, 5]
    alone = regression_average(
        [m[rest] for m in matrices], [gram(x[:, rest]) for x in inputs], [1.0, 3.0], keep=keep
    )
    assert torch.allclose(found[rest], alone, atol=1e-5)


def test_fewer_tokens_than_features() -> None:
    """Without a diagonal of its own the matrix is singular: what the text does not say is the mean."""
    inputs, matrices = layers(12, 3, 2, 3)
    grams = [gram(x) for x in inputs]
    found = regression_average(matrices, grams, [1.0, 1.0], keep=1.0).double()
    mean = (matrices[0] + matrices[1]).double() / 2
    stacked = torch.cat(inputs).double()
    targets = torch.cat([x.double() @ (m.double() - mean) for x, m in zip(inputs, matrices, strict=True)])
    scale = stacked.square().sum(0).rsqrt()  # the smallest step, each input in units of its size
    expected = mean + scale[:, None] * (torch.linalg.pinv(stacked * scale) @ targets)
    assert torch.allclose(stacked @ (found - mean), targets, atol=1e-3)
    assert torch.allclose(found, expected, atol=1e-4)


def test_inputs_of_very_unlike_sizes() -> None:
    """Outlier features of language models: one is 10,000 times the others."""
    inputs, matrices = layers(6, 3, 2, 50)
    for x in inputs:
        x[:, 1] *= 1e4
    outputs = [x.double() @ m.double() for x, m in zip(inputs, matrices, strict=True)]
    pooled = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(outputs)).solution
    found = regression_average(matrices, [gram(x) for x in inputs], [1.0] * 2, keep=1.0)
    assert torch.allclose(found.double(), pooled, atol=1e-4)


def test_equal_layers_give_that_layer() -> None:
    inputs, (matrix, _) = layers(6, 3, 2, 4)
    for keep in (0.0, 0.9, 1.0):
        found = regression_average([matrix, matrix], [gram(x) for x in inputs], [1.0, 2.0], keep=keep)
        assert torch.equal(found, matrix)


def test_zero_products_give_the_mean() -> None:
    _, matrices = layers(4, 3, 2, 4)
    found = regression_average(matrices, [torch.zeros(4, 4)] * 2, [1.0, 1.0], keep=0.9)
    assert torch.allclose(found, (matrices[0] + matrices[1]) / 2, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1)])
def test_odd_shapes_of_layers(shape: tuple[int, int]) -> None:
    matrices = [noise(*shape, seed=i) for i in range(2)]
    grams = [torch.eye(shape[0])] * 2
    assert regression_average(matrices, grams, [1.0, 1.0], keep=0.9).shape == shape


def test_nan_reaches_the_result_of_the_regression() -> None:
    inputs, matrices = layers(4, 3, 2, 9)
    grams = [gram(x) for x in inputs]
    grams[0][1, 1] = float("nan")
    assert torch.isnan(regression_average(matrices, grams, [1.0, 1.0], keep=0.9)).all()


def test_same_bits_with_any_number_of_threads() -> None:
    inputs, matrices = layers(200, 150, 2, 300)
    grams = [gram(x) for x in inputs]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(regression_average(matrices, grams, [1.0, 1.0], keep=0.9))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
