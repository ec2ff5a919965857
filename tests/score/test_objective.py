from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.config.schema import ScoreConfig
from evolve.errors import CandidateError
from evolve.score.objective import objective
from evolve.types import TaskScore


def block(*weights: float) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"tasks": [{"task": f"t{i}", "metric": "acc", "weight": w} for i, w in enumerate(weights)]}
    )


def score(value: float, stderr: float = 0.1, *, higher: bool = True) -> TaskScore:
    return TaskScore("acc", value, stderr, higher)


def test_worked_by_hand() -> None:
    tasks = {"t0": score(0.8, 0.02), "t1": score(1.2, 0.3, higher=False)}
    value, stderr = objective(tasks, block(3, 1))
    assert value == pytest.approx((3 * 0.8 - 1.2) / 4)
    assert stderr == pytest.approx(math.sqrt((3 * 0.02) ** 2 + 0.3**2) / 4)


def test_a_task_without_weight_has_no_say() -> None:
    tasks = {"t0": score(0.8, 0.02), "t1": score(5.0, math.nan)}
    assert objective(tasks, block(2, 0)) == pytest.approx((0.8, 0.02))


def test_no_error_stays_no_error() -> None:
    value, stderr = objective({"t0": score(0.8), "t1": score(0.6, math.nan)}, block(1, 1))
    assert value == pytest.approx(0.7)
    assert math.isnan(stderr)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_metric_is_named(value: float) -> None:
    with pytest.raises(CandidateError, match="t1") as caught:
        objective({"t0": score(0.8), "t1": score(value)}, block(1, 1))
    assert caught.value.kind == "non_finite"


def test_a_missing_task_is_named() -> None:
    with pytest.raises(CandidateError, match="t1"):
        objective({"t0": score(0.8)}, block(1, 1))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 10), st.booleans()), min_size=1, max_size=5),
    st.floats(0.1, 100),
)
def test_scale_of_weights_is_free_and_better_is_larger(
    parts: list[tuple[float, float, bool]], factor: float
) -> None:
    tasks = {f"t{i}": score(value, higher=higher) for i, (value, _, higher) in enumerate(parts)}
    weights = [weight for _, weight, _ in parts]
    value, stderr = objective(tasks, block(*weights))
    assert objective(tasks, block(*(factor * w for w in weights))) == pytest.approx((value, stderr))
    better = score(parts[0][0] + (0.5 if parts[0][2] else -0.5), higher=parts[0][2])
    assert objective({**tasks, "t0": better}, block(*weights))[0] > value
