"""Objectives that look at the parents: the common scale, the lowest task, and the limit on losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evolve.config.schema import ScoreConfig
from evolve.errors import CandidateError
from evolve.score.intervals import wilson
from evolve.score.objective import needs_parents, objective, shortfalls, terms
from evolve.types import TaskScore


def block(*weights: float, **more: Any) -> ScoreConfig:
    tasks = [{"task": f"t{i}", "metric": "acc", "weight": w} for i, w in enumerate(weights)]
    return ScoreConfig.model_validate({"tasks": tasks, **more})


def score(value: float, *, higher: bool = True, stderr: float = 0.0) -> TaskScore:
    return TaskScore("m", value, stderr, higher)


def right(hits: int, count: int = 100) -> TaskScore:
    items = {f"{i:03d}": float(i < hits) for i in range(count)}
    return TaskScore("acc", hits / count, 0.03, True, items)


PARENTS = {
    "math": {"t0": score(0.8), "t1": score(2.0, higher=False)},
    "prose": {"t0": score(0.4), "t1": score(1.0, higher=False)},
    "base": {"t0": score(0.5), "t1": score(1.5, higher=False)},
}


def test_the_worst_parent_is_0_and_the_best_is_1() -> None:
    config = block(1, 1, objective="normalised")
    scale = terms(PARENTS["base"], config, PARENTS)
    found = {
        (name, task): scale[task].offset + scale[task].factor * tasks[task].value
        for name, tasks in PARENTS.items()
        for task in ("t0", "t1")
    }
    assert found["math", "t0"] == pytest.approx(1) and found["prose", "t0"] == pytest.approx(0)
    assert found["prose", "t1"] == pytest.approx(1) and found["math", "t1"] == pytest.approx(0)
    assert found["base", "t0"] == pytest.approx(0.25) and found["base", "t1"] == pytest.approx(0.5)
    assert objective(PARENTS["base"], config, PARENTS)[0] == pytest.approx(0.375)
    assert objective(PARENTS["base"], block(1, 1, objective="worst"), PARENTS)[0] == pytest.approx(0.25)


def test_weights_count_on_the_common_scale_and_only_switch_in_the_worst() -> None:
    assert objective(PARENTS["base"], block(3, 1, objective="normalised"), PARENTS)[0] == pytest.approx(
        0.3125
    )
    assert objective(PARENTS["base"], block(3, 1, objective="worst"), PARENTS)[0] == pytest.approx(0.25)
    assert objective(PARENTS["base"], block(0, 1, objective="worst"), PARENTS)[0] == pytest.approx(0.5)


def test_errors_scale_with_the_unit() -> None:
    tasks = {"t0": score(0.6, stderr=0.02), "t1": score(1.2, higher=False, stderr=0.1)}
    _, stderr = objective(tasks, block(1, 1, objective="normalised"), PARENTS)
    assert stderr == pytest.approx(math.hypot(0.02 / 0.4, 0.1 / 1.0) / 2)
    value, stderr = objective(tasks, block(1, 1, objective="worst"), PARENTS)
    assert (value, stderr) == (pytest.approx(0.5), pytest.approx(0.02 / 0.4)), "that of the lowest task"


@pytest.mark.parametrize("hits", [0, 37, 100])
def test_tied_parents_are_at_1_and_the_unit_is_what_the_items_can_tell(hits: int) -> None:
    parents = {"a": {"t0": right(hits)}, "b": {"t0": right(hits)}}
    config = block(1, objective="normalised")
    assert objective(parents["a"], config, parents)[0] == pytest.approx(1)
    ends = wilson(hits, 100)
    half = (ends.high - ends.low) / 2
    better = {"t0": score(hits / 100 + half)}
    assert objective(better, config, parents)[0] == pytest.approx(2)


def test_nearly_tied_parents_do_not_blow_up_noise() -> None:
    parents = {"a": {"t0": right(50)}, "b": {"t0": right(51)}}
    value, _ = objective({"t0": right(60)}, block(1, objective="normalised"), parents)
    assert 1 < value < 2, "not 10, which the difference of one item would give"


def test_ties_without_any_items() -> None:
    parents = {"a": {"t0": score(0.5)}}
    assert objective({"t0": score(0.7)}, block(1, objective="normalised"), parents)[0] == pytest.approx(1.2)


@pytest.mark.parametrize("kind", ["weighted", "normalised", "worst"])
def test_without_parents_it_is_the_weighted_mean(kind: str) -> None:
    config = block(1, 3, objective=kind, retention={"model": "base"})
    assert needs_parents(config)
    assert objective(PARENTS["base"], config)[0] == pytest.approx((0.5 - 3 * 1.5) / 4)


@pytest.mark.parametrize("kind", ["weighted", "normalised", "worst"])
def test_a_bad_or_missing_metric_fails_by_name(kind: str) -> None:
    config = block(1, 1, objective=kind, retention={"model": "base"})
    for bad in ({"t0": score(0.5)}, {"t0": score(0.5), "t1": score(math.nan)}):
        with pytest.raises(CandidateError, match="t1"):
            objective(bad, config, PARENTS)


def test_shortfalls_name_the_tasks() -> None:
    config = block(1, 1, retention={"model": "base", "loss": 0.02})
    tasks = {"t0": score(0.47), "t1": score(1.6, higher=False)}
    assert shortfalls(tasks, config, PARENTS) == {"t0": pytest.approx(0.01), "t1": pytest.approx(0.08)}
    exact = {"t0": score(0.5 - 0.02), "t1": score(1.5 + 0.02, higher=False)}
    assert shortfalls(exact, config, PARENTS) == {}
    assert shortfalls(tasks, config, None) == {}


values = st.tuples(st.floats(0, 1), st.floats(0.5, 3))


@given(
    st.sampled_from(["weighted", "normalised", "worst"]),
    st.tuples(st.floats(0, 5), st.floats(0, 5)),
    st.floats(0, 0.5),
    values,
    values,
    st.lists(values, min_size=1, max_size=3),
)
def test_who_breaks_the_limit_ranks_below_all_who_keep_it(
    kind: str,
    weights: tuple[float, float],
    loss: float,
    one: tuple[float, float],
    two: tuple[float, float],
    others: list[tuple[float, float]],
) -> None:
    assume(max(weights) > 1e-3)
    config = block(*weights, objective=kind, retention={"model": "p0", "loss": loss})

    def tasks(pair: tuple[float, float]) -> dict[str, TaskScore]:
        return {"t0": score(pair[0]), "t1": score(pair[1], higher=False)}

    parents = {f"p{index}": tasks(pair) for index, pair in enumerate(others)}
    found = [objective(tasks(pair), config, parents)[0] for pair in (one, two)]
    assert all(math.isfinite(value) for value in found)
    keeps = [not shortfalls(tasks(pair), config, parents) for pair in (one, two)]
    if keeps[0] != keeps[1]:
        assert found[keeps.index(True)] > found[keeps.index(False)]
    assert objective(parents["p0"], config, parents)[0] >= min(found) or all(keeps)


@given(st.sampled_from(["weighted", "normalised", "worst"]), values, st.floats(0, 0.5), st.booleans())
def test_better_is_never_lower(kind: str, pair: tuple[float, float], gain: float, first: bool) -> None:
    config = block(1, 2, objective=kind, retention={"model": "base", "loss": 0.05})
    better = (pair[0] + gain, pair[1]) if first else (pair[0], pair[1] - gain)
    found = [
        objective({"t0": score(a), "t1": score(b, higher=False)}, config, PARENTS)[0]
        for a, b in (pair, better)
    ]
    assert found[1] >= found[0] - 1e-12
