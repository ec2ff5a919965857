"""The rules of the race against simulation: how often a settled candidate is wrongly settled."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.score import racing
from evolve.score.racing import IN, OPEN, OUT, Strata


def strata(*sizes: int, shares: tuple[float, ...] | None = None) -> Strata:
    """Interleave strata of the given sizes evenly."""
    of = np.concatenate([np.full(size, index) for index, size in enumerate(sizes)])
    at = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    order = np.argsort(at, kind="stable")
    found = shares or tuple(size / sum(sizes) for size in sizes)
    return Strata(np.array(found), of[order].astype(np.int64))


class TestPaired:
    def test_one_task_of_zeros_and_ones_is_mcnemars_test(self) -> None:
        draw = np.random.default_rng(0)
        first, second = (draw.random((2, 50)) < 0.5).astype(float)
        gained = int(((first == 1) & (second == 0)).sum())
        lost = int(((first == 0) & (second == 1)).sum())
        difference, error = racing.paired(first, second, strata(1000))
        assert difference == pytest.approx((gained - lost) / 50)
        by_hand = (gained - lost) / math.sqrt((gained + lost) * (1 - 50 / 1000))
        assert difference / error == pytest.approx(by_hand)
        assert racing.chance_to_lead(first, second, strata(1000)) == pytest.approx(NormalDist().cdf(by_hand))

    def test_strata_count_by_their_shares(self) -> None:
        items = strata(30, 60, shares=(0.5, -0.25))
        draw = np.random.default_rng(1)
        first, second = draw.normal(size=(2, 45))
        total = variance = 0.0
        for stratum, share in enumerate((0.5, -0.25)):
            places = [place for place in range(45) if items.of[place] == stratum]
            parts = [share / len(places) * (first[place] - second[place]) for place in places]
            total += sum(parts)
            variance += sum(part**2 for part in parts) * (1 - len(places) / (30 if stratum == 0 else 60))
        assert racing.paired(first, second, items) == pytest.approx((total, math.sqrt(variance)))

    def test_all_items_leave_no_doubt(self) -> None:
        items = strata(10)
        first, second = np.ones(10), np.ones(10)
        second[3] = 0.0
        assert racing.chance_to_lead(first, second, items) == 1.0
        assert racing.chance_to_lead(second, first, items) == 0.0
        assert racing.chances([second, first, second], items, chosen=1).tolist() == [0.0, 1.0, 0.0]


class TestChances:
    def test_they_are_the_share_of_a_simulation_from_the_same_model(self) -> None:
        """Scores and estimates drawn from the model: of candidates with a chance p, a share p is in."""
        draw = np.random.default_rng(8)
        items = strata(4000)
        said: list[float] = []
        true: list[bool] = []
        for _ in range(600):
            scores = draw.normal(0.0, draw.uniform(0.0, 0.4), 8)
            table = scores[:, None] + draw.normal(size=(8, 60))
            said += racing.chances(list(table), items, chosen=4).tolist()
            true += (scores >= np.sort(scores)[4]).tolist()
        chances, inside = np.array(said), np.array(true)
        for low in np.arange(0.0, 1.0, 0.1):
            here = (chances >= low) & (chances < low + 0.1)
            if here.sum() > 60:
                near = 0.02 if low in (0.0, 0.9) else 0.08
                assert inside[here].mean() == pytest.approx(chances[here].mean(), abs=near), low

    def test_they_add_up_to_the_places_and_follow_the_estimates(self) -> None:
        table = generation(np.random.default_rng(9), "spread", 9, 200)[:, :80]
        found = racing.chances(list(table), strata(200), chosen=4)
        assert found.sum() == pytest.approx(4.0)
        assert np.all(np.diff(found[np.argsort(-table.mean(axis=1), kind="stable")]) <= 0.03)


def test_estimates_are_unbiased_however_densely_a_stratum_is_asked() -> None:
    draw = np.random.default_rng(2)
    values = np.concatenate([draw.normal(5, 1, 40), draw.normal(0, 1, 120)])
    guesses = []
    for _ in range(4000):
        dense, sparse = draw.permutation(40), 40 + draw.permutation(120)
        order = np.concatenate([dense[:20], sparse[:20]])
        items = Strata(
            np.array([0.25, 0.75]), np.concatenate([np.repeat([0, 1], 20), np.repeat([0, 1], [20, 100])])
        )
        guesses.append(items.estimate(values[order]))
    assert np.mean(guesses) == pytest.approx(values.mean(), abs=4 * np.std(guesses) / math.sqrt(4000))


@given(
    total=st.integers(1, 3000),
    first=st.floats(0.01, 1),
    growth=st.floats(1.1, 4),
    least=st.integers(1, 50),
    most=st.none() | st.integers(1, 4000),
)
def test_looks_grow_geometrically_and_end_where_they_should(
    total: int, first: float, growth: float, least: int, most: int | None
) -> None:
    least = min(least, total)
    sizes = racing.looks(total, first, growth, least=least, most=most)
    assert sizes == sorted(set(sizes))
    assert sizes[0] >= min(least, sizes[-1])
    assert sizes[-1] == min(total, max(most or total, least))
    for before, after in itertools.pairwise(sizes):
        assert after <= growth * before + growth + 1


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from((IN, OPEN, OUT))), min_size=1, max_size=12))
def test_what_is_told_is_finite_and_in_the_order_of_the_race(entries: list[tuple[float, int]]) -> None:
    estimates, verdicts = [entry[0] for entry in entries], [entry[1] for entry in entries]
    told = racing.told_values(estimates, verdicts)
    assert sorted(told) == sorted(estimates)
    for one in range(len(told)):
        for other in range(len(told)):
            if (verdicts[one], estimates[one]) > (verdicts[other], estimates[other]):
                assert told[one] >= told[other]


def race(table: Any, items: Strata, sizes: list[int], error: float, chosen: int) -> list[int]:
    """Run a race over whole rows; return the verdicts before the last look."""
    verdicts = [OPEN] * len(table)
    for size in sizes[:-1]:
        rows = [row[:size] for row in table]
        verdicts = racing.settle(rows, verdicts, items, chosen=chosen, error=error)
    return verdicts


def generation(draw: Any, kind: str, count: int, items: int) -> Any:
    """Draw right and wrong answers of a generation to all items: shared difficulties, own abilities."""
    difficulty = draw.normal(0, 1.5, items)
    ability = {
        "spread": lambda: draw.normal(0, 0.6, count),
        "close": lambda: draw.normal(0, 0.05, count),
        "equal": lambda: np.zeros(count),
        # All but one of those that belong in stand out, and the last place is a lottery.
        "lottery": lambda: np.where(np.arange(count) < count // 2 - 1, 1.5, 0.0),
        "apart": lambda: np.where(np.arange(count) < count // 2, 1.0, -1.0),
    }[kind]()
    linear = ability[:, None] - difficulty + 0.7 * draw.normal(size=(count, items))
    return (draw.random((count, items)) < 1 / (1 + np.exp(-2 * linear))).astype(float)


@pytest.mark.parametrize("kind", ["spread", "close", "equal", "lottery", "apart"])
@pytest.mark.parametrize("error", [0.02, 0.1, 0.3])
def test_the_share_of_wrongly_settled_candidates_stays_below_the_error_level(kind: str, error: float) -> None:
    """The truth is the score on all items; of equal scores either order is right."""
    draw = np.random.default_rng(3)
    items = strata(100, 100, 100)
    sizes = racing.looks(300, 0.1, 2.0, least=items.smallest())
    wrong = settled = total = 0
    for _ in range(200):
        table = generation(draw, kind, 10, 300)
        verdicts = race(table, items, sizes, error, 5)
        truth = np.sort(table.mean(axis=1))
        for row, verdict in zip(table, verdicts, strict=True):
            total += 1
            settled += verdict != OPEN
            wrong += verdict == IN and row.mean() < truth[5]
            wrong += verdict == OUT and row.mean() > truth[4]
    assert wrong / max(1, settled) <= error
    if kind == "apart":
        assert settled / total > 0.9


def test_what_is_settled_stays_settled_and_the_rest_race_for_the_places_left() -> None:
    table = generation(np.random.default_rng(4), "apart", 6, 200)
    rows = [row[:150] for row in table]
    found = racing.settle(rows, [OUT, OPEN, OPEN, IN, OPEN, OPEN], strata(200), chosen=3, error=0.3)
    assert found == [OUT, IN, IN, IN, OUT, OUT]
    rows[0], rows[3] = rows[0][:10], rows[3][:10]
    assert racing.settle(rows, [OUT, OPEN, OPEN, IN, OPEN, OPEN], strata(200), chosen=3, error=0.3) == found
    assert racing.settle(rows, [IN, OPEN, IN, IN, OPEN, OPEN], strata(200), chosen=3, error=0.01) == [
        *(IN, OUT, IN, IN, OUT, OUT)
    ]


class TestReversedShare:
    def share(self, kind: str, asked: int) -> float:
        draw = np.random.default_rng(5)
        items = strata(150, 150)
        shares = []
        for _ in range(150):
            table = generation(draw, kind, 10, 300)
            shares.append(racing.reversed_share([row[:asked] for row in table], items, chosen=5))
        return float(np.mean(shares))

    def test_noise_alone_is_near_one_half_and_clear_differences_near_nothing(self) -> None:
        assert self.share("equal", 30) > 0.35
        assert self.share("apart", 30) < 0.05

    def test_it_is_close_to_what_all_items_show(self) -> None:
        draw = np.random.default_rng(6)
        items = strata(150, 150)
        expected, seen = [], []
        for _ in range(300):
            table = generation(draw, "spread", 10, 300)
            expected.append(racing.reversed_share([row[:60] for row in table], items, chosen=5))
            order = np.argsort(-table[:, :60].mean(axis=1), kind="stable")
            truth = table.mean(axis=1)
            gaps = truth[order[:5]][:, None] - truth[order[5:]][None, :]
            seen.append(float((gaps < 0).mean() + (gaps == 0).mean() / 2))
        assert np.mean(expected) == pytest.approx(np.mean(seen), abs=0.05)

    def test_all_items_leave_nothing_to_err_about(self) -> None:
        assert self.share("close", 300) == 0.0


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_never_more_in_or_out_than_there_are_places(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    items = strata(60)
    table = generation(draw, "spread", count, 60)
    chosen = max(1, count // 2)
    verdicts = racing.settle([row[:40] for row in table], [OPEN] * count, items, chosen=chosen, error=0.45)
    assert verdicts.count(IN) <= chosen
    assert verdicts.count(OUT) <= count - chosen
