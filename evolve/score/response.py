"""Predicts a candidate's score on all items from its answers to a few, by an item-response model.

MERGE3 (Mencattini et al. 2025, arXiv:2502.10436) gives each model an ability and each item a difficulty and
a discrimination, takes the items' parameters from a table of many public models, and the ability of a merge
from few anchors. Here all parameters are fitted on this study's own answers: those of the parents and of
every candidate so far, whatever the task. The model is the two-parameter logistic one with abilities of
several dimensions, ``P(right) = s(a_item . t_model + b_item + c_model)``; for metrics other than 0 and 1 the
link is the identity. All parameters have normal priors; the fit takes turns between models and items, each
turn a few ridge-penalised Newton steps in closed form, so it is the same at every call.

The estimate puts the prediction in the place of every item that was not asked, and corrects it by the mean
residual on those that were, in part: ``correction`` 1 is the difference estimator of survey sampling
(Särndal, Swensson and Wretman 1992, ch. 6), which is unbiased for random anchors whatever the model says,
0 trusts the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Mask = npt.NDArray[np.bool_]

_ROUNDS = 8
_PRECISION = 5.0
"""Prior precision of abilities; items have 1. With 1 for both, estimates spread more than scores do."""
_LIMIT = 30.0


@dataclass(frozen=True)
class ResponseModel:
    """Parameters of items and models.

    Attributes:
        ability: Models by dimensions, the last two being 1 and the model's own constant.
        slope: Items by dimensions, the last two being the item's constant and 1.
        logistic: Whether answers are 0 or 1.
        scale: Answers are divided by it before the fit; 1 for the logistic link.
    """

    ability: Array
    slope: Array
    logistic: bool
    scale: float

    def predict(self) -> Array:
        """Return models by items: the probability of a right answer, or the expected value."""
        linear = self.ability @ self.slope.T
        return _squash(linear) if self.logistic else linear * self.scale


def fit(answers: Array, *, dimensions: int, seed: int = 0) -> ResponseModel:
    """Fit the model to a table of answers.

    Args:
        answers: Models by items; NaN where an item was not asked.
        dimensions: Dimensions of an ability.
        seed: Seed of the directions that the fit starts with where the answers give none.
    """
    known = np.isfinite(answers)
    filled = np.where(known, answers, 0.0)
    logistic = bool(np.isin(filled[known], (0.0, 1.0)).all())
    scale = 1.0 if logistic else float(np.std(filled[known]) or 1.0)
    filled = filled / scale
    dimensions = max(1, min(dimensions, len(answers) - 1))
    ability, slope = _start(filled, known, dimensions, logistic, seed)
    free_model = np.array([*[True] * dimensions, False, True])
    free_item = np.array([*[True] * dimensions, True, False])
    for _ in range(_ROUNDS):
        slope = _newton(slope, ability, filled.T, known.T, logistic, free_item, 1.0)
        ability = _newton(ability, slope, filled, known, logistic, free_model, _PRECISION)
    return ResponseModel(ability, slope, logistic, scale)


def estimate(
    values: Array, predicted: Array, weights: Array, asked_weights: Array, *, correction: float
) -> float:
    """Return the estimated objective of one candidate.

    Args:
        values: Its answers to a prefix of the items.
        predicted: What the model predicts for all items.
        weights: What each of all items counts.
        asked_weights: What each asked item counts when it stands for its stratum.
        correction: How much of the mean residual on the asked items is added to the rest, 0 to 1.
    """
    count = len(values)
    own = float(weights[:count] @ values + weights[count:] @ predicted[count:])
    residual = values - predicted[:count]
    extra = float((asked_weights - weights[:count]) @ residual)
    return own + correction * extra


def _start(filled: Array, known: Mask, dimensions: int, logistic: bool, seed: int) -> tuple[Array, Array]:
    """Start from the largest singular vectors of what row and column means leave."""
    rows, columns = known.shape
    total = filled.sum() / max(1, known.sum())
    by_item = (filled.sum(axis=0) + total) / (known.sum(axis=0) + 1)
    by_model = ((filled - by_item) * known).sum(axis=1) / np.maximum(1, known.sum(axis=1))
    rest = np.where(known, filled - by_item - by_model[:, None], 0.0)
    left, values, right = np.linalg.svd(rest, full_matrices=False)
    # The sign of a singular vector is a matter of the library: fix it.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    left, right = left * signs, right * signs[:, None]
    size = min(dimensions, len(values))
    draw = np.random.default_rng(seed)
    ability = draw.normal(scale=0.01, size=(rows, dimensions))
    ability[:, :size] += left[:, :size] * np.sqrt(rows)
    slope = draw.normal(scale=0.01, size=(columns, dimensions))
    slope[:, :size] += (values[:size, None] * right[:size]).T / np.sqrt(rows)
    factor = 4.0 if logistic else 1.0
    constant = np.log((by_item + 0.05) / (1.05 - by_item)) if logistic else by_item
    return (
        np.column_stack([ability, np.ones(rows), factor * by_model]),
        np.column_stack([factor * slope, constant, np.ones(columns)]),
    )


def _newton(
    own: Array, other: Array, table: Array, known: Mask, logistic: bool, free: Mask, precision: float
) -> Array:
    """Improve the rows of ``own`` against fixed ``other``: penalised Newton steps for all rows at once.

    Args:
        own: Rows by dimensions.
        other: Columns by dimensions.
        table: Rows by columns.
        known: Which entries of the table count.
        logistic: The link.
        free: Which dimensions may move.
        precision: Of the prior of each.
    """
    own = own.copy()
    features = other[:, free]
    penalty = precision * np.eye(int(free.sum()))
    pairs = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    for _ in range(2 if logistic else 1):
        linear = own @ other.T
        expected = _squash(linear) if logistic else linear
        curvature = expected * (1 - expected) if logistic else np.ones_like(expected)
        gradient = (known * (table - expected)) @ features - precision * own[:, free]
        hessian = ((known * np.maximum(curvature, 1e-3)) @ pairs).reshape(len(own), *penalty.shape) + penalty
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        size = np.maximum(1.0, np.linalg.norm(step, axis=1, keepdims=True) / 2.0)
        own[:, free] += step / size
    return own


def _squash(linear: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(linear, -_LIMIT, _LIMIT))))
