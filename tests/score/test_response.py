"""The estimator against answers drawn from a known model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evolve.score import response

ITEMS = 300


def answers(draw: Any, models: int, *, dimensions: int = 2, logistic: bool = True) -> Any:
    slope = draw.normal(0, 1.2, (ITEMS, dimensions))
    ability = draw.normal(0, 1.2, (models, dimensions))
    linear = ability @ slope.T + draw.normal(0, 1.0, ITEMS)
    if not logistic:
        return 3.0 + 0.5 * linear + 0.1 * draw.normal(size=linear.shape)
    return (draw.random(linear.shape) < 1 / (1 + np.exp(-linear))).astype(float)


def errors(table: Any, asked: int, history: int, correction: float, seed: int) -> tuple[float, float]:
    """Return the root mean square errors of the estimator and of the plain mean, over draws of anchors."""
    draw = np.random.default_rng(seed)
    found: list[float] = []
    plain: list[float] = []
    for _ in range(12):
        places = draw.permutation(ITEMS)
        shuffled = table[:, places]
        seen = shuffled.copy()
        seen[history:, asked:] = np.nan
        predicted = response.fit(seen, dimensions=2).predict()
        weights = np.full(ITEMS, 1 / ITEMS)
        for row, guess in zip(shuffled[history:], predicted[history:], strict=True):
            estimate = response.estimate(
                row[:asked], guess, weights, np.full(asked, 1 / asked), correction=correction
            )
            found.append(estimate - row.mean())
            plain.append(row[:asked].mean() - row.mean())
    return float(np.sqrt(np.mean(np.square(found)))), float(np.sqrt(np.mean(np.square(plain))))


@pytest.mark.parametrize("logistic", [True, False])
def test_it_beats_the_mean_of_the_anchors_where_its_model_holds(logistic: bool) -> None:
    table = answers(np.random.default_rng(0), 60, logistic=logistic)
    ours, plain = errors(table, 30, 40, 0.5, seed=1)
    assert ours < (0.85 if logistic else 0.65) * plain


def test_with_full_correction_it_is_unbiased_although_its_model_is_wrong() -> None:
    """New candidates answer by other rules than those that the model was fitted on."""
    draw = np.random.default_rng(2)
    table = answers(draw, 40)
    table[30:] = (draw.random((10, ITEMS)) < 0.9).astype(float)
    found = []
    for seed in range(40):
        places = np.random.default_rng(seed).permutation(ITEMS)
        shuffled = table[:, places]
        # Fitted without the candidates in question, so that the prediction knows nothing of their anchors.
        predicted = response.fit(shuffled[:30], dimensions=2).predict().mean(axis=0)
        for row in shuffled[30:]:
            estimate = response.estimate(
                row[:30], predicted, np.full(ITEMS, 1 / ITEMS), np.full(30, 1 / 30), correction=1.0
            )
            found.append(estimate - row.mean())
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)


def test_all_items_give_the_score_itself() -> None:
    table = answers(np.random.default_rng(3), 5)
    weights = np.full(ITEMS, 1 / ITEMS)
    predicted = response.fit(table, dimensions=2).predict()
    for row, guess in zip(table, predicted, strict=True):
        assert response.estimate(row, guess, weights, weights, correction=0.5) == pytest.approx(row.mean())


def test_it_is_the_same_at_every_call_and_finite_on_the_edge() -> None:
    table = np.array([[1.0, 1.0, 0.0, np.nan], [0.0, np.nan, np.nan, np.nan], [1.0, 1.0, 1.0, 1.0]])
    first, second = (response.fit(table, dimensions=3).predict() for _ in range(2))
    assert np.array_equal(first, second)
    assert np.isfinite(first).all()
    assert ((first >= 0) & (first <= 1)).all()
    constant = response.fit(np.full((3, 4), 2.5), dimensions=1).predict()
    assert np.isfinite(constant).all()
