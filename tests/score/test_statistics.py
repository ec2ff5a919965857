from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.config.schema import ScoreConfig
from evolve.score.choice import halves
from evolve.score.intervals import (
    Interval,
    paired_interval,
    student_quantile,
    tango,
    task_interval,
    wilson,
)
from evolve.score.statistics import compare, interval
from evolve.types import TaskScore


def block(*weights: float) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"tasks": [{"task": f"t{i}", "metric": "acc", "weight": w} for i, w in enumerate(weights)]}
    )


def score(values: object, *, higher: bool = True) -> TaskScore:
    numbers = np.asarray(values, dtype=float)
    items = {f"{i:05d}": float(value) for i, value in enumerate(numbers)}
    stderr = float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else math.nan
    return TaskScore("acc", float(numbers.mean()), stderr, higher, items)


def test_wilson_against_the_book() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for hits, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ]:
        found = wilson(hits, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("gained", "lost", "count"), [(12, 2, 44), (1, 0, 30), (9, 7, 60), (0, 5, 20)])
def test_tango_against_its_definition(gained: int, lost: int, count: int) -> None:
    """At each end, the score test with the nuisance parameter fitted by brute force is just significant."""
    found = tango(gained, lost, count)
    for delta, sign in ((found.low, 1), (found.high, -1)):
        rate = np.linspace(max(0, -delta), (1 - delta) / 2, 2_000_001)[1:-1]
        chance = gained * np.log(rate + delta) + (count - gained - lost) * np.log(1 - 2 * rate - delta)
        if lost:
            chance = chance + lost * np.log(rate)
        best = rate[np.argmax(chance)]
        spread = math.sqrt(count * (2 * best + delta - delta**2))
        assert (gained - lost - count * delta) / spread == pytest.approx(sign * 1.959964, abs=2e-3)


def test_tango_without_a_discordant_pair() -> None:
    z2 = 1.959964**2
    same = tango(0, 0, 50)
    assert (same.low, same.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-6)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 100))
def test_tango_is_a_mirror_and_holds_its_estimate(gained: int, lost: int, same: int) -> None:
    count = gained + lost + same
    if count == 0:
        return
    one, other = tango(gained, lost, count), tango(lost, gained, count)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)


def test_student_against_the_table() -> None:
    table = {1: 12.706, 2: 4.303, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980, 1000: 1.962}
    for freedom, quantile in table.items():
        assert student_quantile(0.95, freedom) == pytest.approx(quantile, abs=6e-4)


def test_all_right_is_not_certain() -> None:
    found = task_interval(score(np.ones(100)))
    assert found.low == pytest.approx(0.963, abs=1e-3)
    same = compare({"t0": score(np.ones(100))}, {"t0": score(np.ones(100))}, block(1))
    assert same.difference == 0
    assert same.low < -0.03 and same.high > 0.03
    assert same.verdict == "cannot tell"
    assert same.superiority == 0.5
    assert same.bootstrap == Interval(0, 0, 0)


def test_direction_and_weights() -> None:
    rng = np.random.default_rng(0)
    loss = rng.normal(2.0, 0.3, 200)
    right = rng.random(200) < 0.6
    ours = {"t0": score(right), "t1": score(loss - 0.5, higher=False)}
    theirs = {"t0": score(right), "t1": score(loss, higher=False)}
    found = compare(ours, theirs, block(1, 3))
    assert found.difference == pytest.approx(3 * 0.5 / 4)
    assert found.verdict == "better" and found.superiority == 1.0
    assert found.items == 400
    back = compare(theirs, ours, block(1, 3))
    assert back.verdict == "worse"
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert not back.no_worse_than(0.01) and found.no_worse_than(0.0)


def test_pairing_narrows() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 1, 300)
    ours, theirs = hard + rng.normal(0.05, 0.1, 300), hard + rng.normal(0, 0.1, 300)
    found = compare({"t0": score(ours)}, {"t0": score(theirs)}, block(1))
    alone = interval({"t0": score(ours)}, block(1))
    assert found.verdict == "better"
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    assert found.bootstrap.low == pytest.approx(found.low, abs=0.004)
    assert found.bootstrap.high == pytest.approx(found.high, abs=0.004)


def test_order_of_items_is_free_and_seeds_repeat() -> None:
    rng = np.random.default_rng(2)
    one, two = score(rng.random(50)), score(rng.random(50))
    turned = TaskScore("acc", two.value, two.stderr, True, dict(reversed(list(two.items.items()))))
    assert compare({"t0": one}, {"t0": two}, block(1)) == compare({"t0": one}, {"t0": turned}, block(1))


def test_different_items_are_refused() -> None:
    other = TaskScore("acc", 1.0, 0.0, True, {"elsewhere": 1.0})
    with pytest.raises(ValueError, match="t0"):
        compare({"t0": score([0, 1])}, {"t0": other}, block(1))


def test_one_item_tells_nothing() -> None:
    found = interval({"t0": score([0.5])}, block(1))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_halves_part_the_items_alike_for_every_model() -> None:
    one, two = halves(score([0, 1, 1, 1, 0])), halves(score([1, 1, 1, 1, 1]))
    assert [set(part.items) for part in one] == [set(part.items) for part in two]
    assert set(one[0].items) | set(one[1].items) == {f"{i:05d}" for i in range(5)}
    assert not set(one[0].items) & set(one[1].items)
    assert one[0].value == pytest.approx(1 / 3) and one[1].value == 1.0


def covered(found: Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


# 2,000 draws: the share is known to within 1 point, so 93.5 % is the floor of a 95 % interval that is right.
ROUNDS = 2000


@pytest.mark.parametrize(("count", "rates"), [(100, (0.99, 0.98)), (200, (0.99, 0.98)), (200, (0.6, 0.5))])
def test_coverage_of_a_paired_difference(count: int, rates: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    ours = rng.random((ROUNDS, count)) < rates[0]
    theirs = np.where(rng.random((ROUNDS, count)) < 0.5, ours, rng.random((ROUNDS, count)) < rates[1])
    # Half of the answers of the second model are those of the first: correlated, as two merges are.
    truth = rates[0] - (0.5 * rates[0] + 0.5 * rates[1])
    hits = [
        covered(paired_interval(a.astype(float), b.astype(float)), truth)
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert 0.935 <= np.mean(hits) <= 0.999


def test_coverage_of_a_weighted_objective_with_mixed_tasks() -> None:
    rng = np.random.default_rng(4)
    config = block(2, 1, 1)
    truth = (2 * 0.97 + 0.4 - 1.5) / 4
    hits = []
    for _ in range(ROUNDS // 2):
        tasks = {
            "t0": score(rng.random(100) < 0.97),
            "t1": score(rng.random(60) < 0.4),
            "t2": score(rng.gamma(3.0, 0.5, 80), higher=False),
        }
        hits.append(covered(interval(tasks, config), truth))
    assert 0.93 <= np.mean(hits) <= 0.985


def test_coverage_of_comparison_and_its_bootstrap() -> None:
    rng = np.random.default_rng(5)
    config = block(1, 1)
    truth = (0.05 + 0.1) / 2
    hits, boot, wrong = [], [], 0
    for _ in range(300):
        hard = rng.normal(1, 0.5, 100)
        right = rng.random(150)
        ours = {"t0": score(right < 0.75), "t1": score(hard + rng.normal(-0.1, 0.2, 100), higher=False)}
        theirs = {"t0": score(right < 0.7), "t1": score(hard, higher=False)}
        found = compare(ours, theirs, config)
        hits.append(covered(found, truth))
        boot.append(covered(found.bootstrap, truth))
        wrong += found.verdict == "worse"
    assert np.mean(hits) >= 0.92
    assert np.mean(boot) >= 0.90
    assert wrong == 0
