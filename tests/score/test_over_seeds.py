"""A recipe over seeds: closed forms, and whether the interval holds what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evolve.config.schema import ScoreConfig
from evolve.score.over_seeds import averaged, compare_over_seeds, over_seeds
from evolve.score.statistics import interval
from evolve.types import TaskScore

CONFIG = ScoreConfig.model_validate({"tasks": [{"task": "t", "metric": "acc"}]})


def score(values) -> dict[str, TaskScore]:
    items = {f"{i:04d}": float(value) for i, value in enumerate(values)}
    return {"t": TaskScore("acc", float(np.mean(values)), 0.0, True, items, None)}


def test_one_seed_has_the_interval_over_items():
    tasks = score([1, 0, 1, 1, 0, 1, 0, 1])
    found = over_seeds([tasks], CONFIG)
    assert found.mean == interval(tasks, CONFIG)
    assert math.isnan(found.spread) and len(found.values) == 1


def test_equal_draws_add_nothing():
    tasks = score([1, 0, 1, 1, 0, 1, 0, 1])
    found = over_seeds([tasks, tasks, tasks], CONFIG)
    assert found.mean == interval(tasks, CONFIG) and found.spread == 0


def test_the_half_width_is_that_of_items_and_of_seeds():
    rng = np.random.default_rng(0)
    values = rng.random((3, 50)) + np.array([[0.0], [0.3], [0.7]])
    found = over_seeds([score(row) for row in values], CONFIG)
    means, mean = values.mean(1), values.mean(0)
    items = stats.t.ppf(0.975, 49) * mean.std(ddof=1) / math.sqrt(50)
    seeds = stats.t.ppf(0.975, 2) * means.std(ddof=1) / math.sqrt(3)
    half = math.sqrt(items**2 + seeds**2)
    assert found.values == pytest.approx(means) and found.spread == pytest.approx(means.std(ddof=1))
    assert found.mean.value == pytest.approx(values.mean())
    assert found.mean.high - found.mean.value == pytest.approx(half, rel=1e-6)
    assert found.mean.value - found.mean.low == pytest.approx(half, rel=1e-6)


def test_a_difference_is_paired_over_the_items():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((2, 40)), rng.random((1, 40))
    found = compare_over_seeds([score(row) for row in ours], [score(row) for row in theirs], CONFIG)
    paired = ours.mean(0) - theirs[0]
    items = stats.t.ppf(0.975, 39) * paired.std(ddof=1) / math.sqrt(40)
    seeds = stats.t.ppf(0.975, 1) * ours.mean(1).std(ddof=1) / math.sqrt(2)
    assert found.value == pytest.approx(paired.mean())
    assert found.high - found.value == pytest.approx(math.hypot(items, seeds), rel=1e-6)


def test_only_items_that_all_seeds_have_count():
    one, two = score([1, 0, 1, 0]), score([1, 1, 1])
    found = averaged([one, two])["t"]
    assert list(found.items.values()) == [1, 0.5, 1] and found.value == pytest.approx(2.5 / 3)


def test_a_number_of_the_whole_model_is_averaged():
    tasks = [{"t": TaskScore("bytes", value, math.nan, False, {}, None)} for value in (2.0, 4.0)]
    assert averaged(tasks)["t"].value == 3.0


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_it_holds_the_recipe_at_least_as_often_as_it_says(spread):
    """Items differ in difficulty, seeds in skill: the truth is the mean over both."""
    rng = np.random.default_rng(2)
    rounds, held = 400, 0
    for _ in range(rounds):
        hard = rng.uniform(0.3, 0.8, 100)
        skill = rng.normal(0, spread, (3, 1))
        draws = (rng.random((3, 100)) < np.clip(hard + skill, 0, 1)).astype(float)
        found = over_seeds([score(row) for row in draws], CONFIG).mean
        held += found.low <= 0.55 <= found.high
    assert held / rounds > 0.93


def test_the_lowest_task_of_the_mean_is_no_seeds_score():
    """Each seed loses one of two tasks: all are at 0, and so is their mean."""
    worst = ScoreConfig.model_validate(
        {"objective": "worst", "tasks": [{"task": name, "metric": "acc"} for name in "ab"]}
    )

    def both(first, second):
        return {
            name: TaskScore("acc", count / 40, 0.0, True, {f"{i:02d}": float(i < count) for i in range(40)})
            for name, count in (("a", first), ("b", second))
        }

    parents = {"low": both(12, 12), "high": both(20, 20)}
    draws = [both(12, 28), both(28, 12), both(12, 28)]
    found = over_seeds(draws, worst, parents)
    assert found.values == pytest.approx((0, 0, 0)) and found.mean.value == pytest.approx(0)
    against = compare_over_seeds(draws, [both(12, 12)], worst, parents)
    assert against.value == pytest.approx(0)
