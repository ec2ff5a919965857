from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.blocks import BLOCK
from evolve.tensors.median import geometric_median, median_shares, squared_distances
from tests.stages.merge import reference_beyond as ref

coordinates = st.integers(-30, 30).map(lambda n: n / 8)


@st.composite
def clouds(draw: st.DrawFn) -> tuple[Any, Any]:
    dimensions, count = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    row = st.lists(coordinates, min_size=dimensions, max_size=dimensions)
    points = np.array([draw(row) for _ in range(count)])
    weights = np.array([draw(st.sampled_from([0.25, 0.5, 1.0, 1.0, 2.0])) for _ in range(count)])
    return points, weights


def median(points: Any, weights: Any | None = None, **settings: Any) -> Any:
    tensors = [torch.tensor(point, dtype=torch.float32) for point in points]
    found = geometric_median(tensors, [1.0] * len(points) if weights is None else list(weights), **settings)
    return found.double().numpy()


@given(clouds())
def test_no_point_has_a_smaller_sum_of_distances(case: tuple[Any, Any]) -> None:
    """Where the median is not unique, the value is."""
    points, weights = case
    best = ref.sum_of_distances(ref.geometric_median(points, weights), points, weights)
    found = ref.sum_of_distances(median(points, weights), points, weights)
    assert found <= best + 2e-6 * (1 + best)


def test_three_points_against_a_fine_minimisation() -> None:
    points = np.array([[0.0, 0.0], [4.0, 0.5], [1.0, 3.0]])
    steps = np.linspace(0, 4, 801)
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    values = np.sqrt(((grid[:, None] - points) ** 2).sum(2)).sum(1)
    rough = grid[values.argmin()]
    assert np.abs(median(points) - rough).max() <= steps[1]
    assert np.allclose(median(points), ref.geometric_median(points, np.ones(3)), atol=1e-6)
    # From the Fermat point of a triangle all sides are seen under 120 degrees.
    arms = points - median(points)
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    assert np.allclose(arms @ arms.T, 1.5 * np.eye(3) - 0.5, atol=1e-5)


def test_a_corner_wider_than_120_degrees_is_the_median_itself() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    assert (median(points) == points[0]).all()


def test_a_start_on_a_point_that_is_not_the_median_goes_on() -> None:
    """The mean of all is the last point: Weiszfeld's own formula divides by zero there, or stays."""
    points = np.array([[-3.0, 0.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [0.0, 0.0]])
    weights = np.array([1.0, 1.0, 1.0, 1.0, 0.1])
    assert np.allclose(weights @ points, 0)
    found = median(points, weights)
    assert np.linalg.norm(found) > 0.3
    assert np.allclose(found, ref.geometric_median(points, weights), atol=1e-6)


def test_an_iterate_that_lands_on_a_point_goes_on() -> None:
    squared = np.array([[0.0, 1.0, 4.0, 9.0], [1, 0, 1, 4], [4, 1, 0, 1], [9, 4, 1, 0]])
    for weights in ([1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 1.0, 3.5], [1.0, 1.0, 1.0, 2.9]):
        shares = median_shares(squared, weights, max_iter=1000, tol=1e-12)
        line = np.arange(4.0)[:, None]
        best = ref.sum_of_distances(ref.geometric_median(line, np.array(weights)), line, np.array(weights))
        assert ref.sum_of_distances(shares @ line, line, np.array(weights)) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("points", "weights", "expected"),
    [
        ([[0.0], [2.0]], [1, 1], 1.0),  # every point between is a median: the closest to the mean
        ([[0.0], [2.0]], [1, 1.5], 2.0),
        ([[0.0], [1.0], [2.0], [9.0]], [1, 1, 1, 1], 2.0),  # the mean is 3, the medians are from 1 to 2
        ([[0.0], [1.0], [5.0]], [1, 1, 1], 1.0),
        ([[3.0], [3.0], [3.0], [900.0]], [1, 1, 1, 1], 3.0),
        ([[7.0]], [0.2], 7.0),
        ([[1.0], [5.0], [100.0]], [1, 1, 0], 3.0),  # no weight, no pull
    ],
)
def test_on_a_line(points: Any, weights: Any, expected: float) -> None:
    assert median(points, weights) == pytest.approx(expected, abs=1e-6)
    assert median(points[::-1], weights[::-1]) == pytest.approx(expected, abs=1e-6)


def test_one_outlier_moves_the_mean_and_not_the_median() -> None:
    generator = np.random.default_rng(0)
    good = generator.normal(size=(6, 50))
    far = median(np.vstack([good, 1e6 * np.ones((1, 50))]))
    assert np.linalg.norm(far - median(good)) < 10
    assert np.linalg.norm(np.vstack([good, 1e6 * np.ones((1, 50))]).mean(0)) > 1e5


def test_points_far_from_the_origin_and_close_to_each_other() -> None:
    """The distances decide, not the coordinates: no precision is lost with the models' common part."""
    points = 100 + np.array([[0.0, 0.0], [4.0, 0.5], [1.0, 3.0]]) / 64
    shares = median_shares(
        squared_distances([torch.tensor(p, dtype=torch.float32) for p in points]),
        [1, 1, 1],
        max_iter=1000,
        tol=1e-10,
    )
    assert np.allclose(shares @ points, ref.geometric_median(points, np.ones(3)), atol=1e-8)


def test_a_median_very_close_to_a_point() -> None:
    """Just inside of the 120 degrees: the median is near the corner, and not in it."""
    angle = np.deg2rad(59.99)
    points = np.array([[0.0, 0.0], [np.sin(angle), np.cos(angle)], [-np.sin(angle), np.cos(angle)]])
    found = median(points)
    assert 0 < np.linalg.norm(found) < 1e-3
    assert np.allclose(found, ref.geometric_median(points, np.ones(3)), atol=1e-6)


def test_max_iter_and_tol_stop() -> None:
    points = np.array([[0.0, 0.0], [4.0, 0.5], [1.0, 3.0]])
    exact = median(points)
    assert np.linalg.norm(median(points, max_iter=1) - exact) > 1e-3
    assert 1e-6 < np.linalg.norm(median(points, tol=0.9) - exact) < 1


def test_several_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3 * BLOCK + 5, generator=generator) for _ in range(4)]
    squared = squared_distances(tensors)
    wide = torch.stack(tensors).double()
    assert np.allclose(squared, (torch.cdist(wide, wide) ** 2).numpy(), rtol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_result(bad: float) -> None:
    tensors = [torch.randn(9), torch.randn(9), torch.randn(9)]
    tensors[1][4] = bad
    assert not torch.isfinite(geometric_median(tensors, [1.0, 1.0, 1.0])).all()
