"""Samplers that come to an end: the greedy soup against its recipe told again, the grid against a list."""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import UserError
from evolve.registry import SAMPLERS
from evolve.search.base import FiniteFactory
from evolve.search.greedy_soup import GreedySoup, next_soup
from evolve.search.study_searcher import StudySearcher
from evolve.space.genes import Gene
from evolve.store.study import journal_path, open_study

from .kit import centre, contents, recipe_of
from .test_kills import Killed, arm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna

    from evolve.store.rundir import RunDir

Table = dict[tuple[int, ...], float | None]


def switches(count: int) -> tuple[Gene, ...]:
    return tuple(Gene(f"merge.m{i}.weight", 0, 1, step=1, choices=(0, 1)) for i in range(count))


def scores(count: int, seed: int, *, coarse: bool = True, failing: float = 0.0) -> Table:
    """Invent a score for every soup; coarse ones tie often."""
    draw = random.Random(seed)
    table: Table = {}
    for soup in itertools.product((0, 1), repeat=count):
        value = draw.randrange(6) / 10 if coarse else draw.random()
        table[soup] = None if draw.random() < failing else value
    return table


def by_hand(count: int, table: Table) -> tuple[list[tuple[int, ...]], tuple[int, ...] | None]:
    """Recipe 1 of the paper, told as it stands there: sets of models, in the order of their own scores."""

    def soup(members: set[int]) -> tuple[int, ...]:
        return tuple(1 if i in members else 0 for i in range(count))

    looked = [soup({i}) for i in range(count)]
    usable = [i for i in range(count) if table[soup({i})] is not None]
    order = sorted(usable, key=lambda i: table[soup({i})], reverse=True)
    ingredients: set[int] = set()
    for i in order:
        if not ingredients:
            ingredients = {i}
            continue
        tried, kept = table[soup(ingredients | {i})], table[soup(ingredients)]
        looked.append(soup(ingredients | {i}))
        if tried is not None and kept is not None and tried >= kept:
            ingredients |= {i}
    return looked, (soup(ingredients) if ingredients else None)


@given(st.integers(1, 6), st.integers(0, 10**6), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_the_greedy_soup_is_the_recipe_of_the_paper(
    count: int, seed: int, coarse: bool, failing: float
) -> None:
    table = scores(count, seed, coarse=coarse, failing=failing)
    looked, best = by_hand(count, table)
    told: Table = {}
    asked = []
    while (soup := next_soup(told, count)) is not None:
        assert soup not in told
        asked.append(soup)
        told[soup] = table[soup]
    assert asked == looked
    assert len(asked) <= 2 * count - 1
    if best is not None:
        known = [value for value in told.values() if value is not None]
        assert table[best] == max(known), "no soup on the way was better"


def searcher(study: optuna.Study, sampler: str, genes: Sequence[Gene], population: int) -> StudySearcher:
    factory = SAMPLERS.load(sampler)
    return StudySearcher(study, genes, factory, population=population, seed=7, centre=centre(genes))


def drive(search: StudySearcher, value: Callable[[dict[str, float]], float | None]) -> None:
    while not (progress := search.progress()).exhausted:
        proposals = search.round(max(1, progress.missing))
        assert proposals
        random.Random(len(proposals)).shuffle(proposals)
        for proposal in proposals:
            values = dict(proposal.values)
            search.tell(proposal.number, value(values), recipe=recipe_of(values))
    assert search.round(9) == []


def soups(study: optuna.Study, count: int) -> list[tuple[int, ...]]:
    names = [gene.name for gene in switches(count)]
    return [tuple(int(trial.params[name]) for name in names) for trial in study.get_trials(deepcopy=False)]


def check_greedy(study: optuna.Study, count: int, failing: float) -> None:
    table = scores(count, seed=count, failing=failing)
    looked, _ = by_hand(count, table)
    drive(
        searcher(study, "greedy_soup", switches(count), 1),
        lambda values: table[tuple(map(int, values.values()))],
    )
    whole = (1,) * count
    # The soup of all is scored first; where the recipe comes to it, its score is known.
    assert soups(study, count) == [whole, *(soup for soup in looked if soup != whole)]
    assert len(study.get_trials()) <= GreedySoup().most(switches(count))


@pytest.mark.parametrize("failing", [0.0, 0.25])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_search_for_the_greedy_soup(run: RunDir, count: int, failing: float) -> None:
    check_greedy(open_study(run, None, "s"), count, failing)


def test_a_search_in_every_storage(run: RunDir, url: str | None) -> None:
    check_greedy(open_study(run, url, "s"), 4, 0.25)


def value_of(values: dict[str, float]) -> float | None:
    text = repr(sorted(values.items()))
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 1000
    return None if number < 100 else number // 100


FIXED = Gene("merge.lambda", 0.5, 0.5)
GRID = (
    Gene("alpha", 0.0, 1.0, step=0.25),
    FIXED,
    Gene("kind", 0, 2, step=1, choices=("a", "b", "c")),
    Gene("x", -1.0, 1.0, step=2.0),
)
CASES = [("greedy_soup", (*switches(5), FIXED), 1), ("grid", GRID, 4)]


@pytest.mark.parametrize(("sampler", "genes", "population"), CASES)
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_every_instant(
    run: RunDir, sampler: str, genes: tuple[Gene, ...], population: int, every: int
) -> None:
    """One kill in one search, at each write, before and after it: the end is the same, and so is the way."""
    study = open_study(run, None, "undisturbed")
    drive(searcher(study, sampler, genes, population), value_of)
    expected = contents(study)
    assert {row[1] for row in expected} == {"COMPLETE", "FAIL"}
    instant, survived = 0, False
    while not survived:
        instant += every
        journal_path(run).unlink()
        study = open_study(run, None, "killed")
        arm(study, instant)
        try:
            drive(searcher(study, sampler, genes, population), value_of)
            survived = True
        except Killed:
            drive(searcher(open_study(run, None, "killed"), sampler, genes, population), value_of)
        assert contents(open_study(run, None, "killed")) == expected, f"killed at write {instant}"
    assert instant >= 100


def test_it_is_not_over_while_something_runs(run: RunDir) -> None:
    search = searcher(open_study(run, None, "s"), "grid", (Gene("x", 0.0, 1.0, step=0.5),), 4)
    (first,) = search.round(4)
    search.tell(first.number, 0.0, recipe="")
    rest = search.round(4)
    assert [proposal.values["x"] for proposal in rest] == [0.0, 1.0], "cut to what there is"
    assert not search.progress().exhausted
    search.tell(rest[0].number, 0.0, recipe="")
    assert not search.progress().exhausted
    search.tell(rest[1].number, None, recipe="")
    assert search.progress().exhausted
    assert search.progress().missing > 0


@pytest.mark.parametrize("population", [1, 4, 7])
def test_the_grid_asks_each_point_once_in_order(run: RunDir, population: int) -> None:
    study = open_study(run, None, "s")
    drive(searcher(study, "grid", GRID, population), value_of)
    points = [tuple(trial.params.values()) for trial in study.get_trials()]
    first = (0.5, 0.5, 1, -1.0)
    listed = list(itertools.product([0.0, 0.25, 0.5, 0.75, 1.0], [0.5], [0, 1, 2], [-1.0, 1.0]))
    assert points[0] == first, "the centre"
    assert points[1:] == [point for point in listed if point != first]


def test_steps_that_are_no_binary_numbers(run: RunDir) -> None:
    genes = (Gene("alpha", 0.0, 1.0, step=0.1),)
    study = open_study(run, None, "s")
    drive(searcher(study, "grid", genes, 4), value_of)
    found = sorted(genes[0].decode(trial.params["alpha"]) for trial in study.get_trials())
    assert found == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.mark.parametrize(
    ("sampler", "genes", "population", "message"),
    [
        ("greedy_soup", (*switches(2), Gene("x", 0.0, 1.0)), 1, "x is no switch"),
        ("greedy_soup", (Gene("x", 0, 1, step=1, choices=(1, 0)),), 1, "x is no switch"),
        ("greedy_soup", (Gene("x", 0, 1, step=1, choices=(0.2, 0.7)),), 1, "x is no switch"),
        ("greedy_soup", (Gene("x", 0, 2, step=1, choices=(0, 1, 2)),), 1, "x is no switch"),
        ("greedy_soup", (FIXED,), 1, "for each model"),
        ("greedy_soup", switches(2), 4, "remove population"),
        ("grid", (Gene("x", 0.0, 1.0),), 4, "x has none: write {low: 0, high: 1, step"),
        ("grid", tuple(Gene(f"x{i}", 0.0, 1.0, step=0.01) for i in range(3)), 4, "1,030,301 points"),
    ],
)
def test_spaces_that_cannot_be_searched(
    run: RunDir, sampler: str, genes: tuple[Gene, ...], population: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        searcher(open_study(run, None, "s"), sampler, genes, population)


@pytest.mark.parametrize("choices", [(False, True), (0, 3), (0, 0.5), (1, 0)])
def test_only_weights_of_0_and_1_are_switches(run: RunDir, choices: tuple[Any, ...]) -> None:
    genes = (*switches(2), Gene("other", 0, 1, step=1, choices=choices))
    with pytest.raises(UserError, match="other is no switch"):
        searcher(open_study(run, None, "s"), "greedy_soup", genes, 1)


def test_which_samplers_come_to_an_end() -> None:
    found: Any = {name for name in SAMPLERS.names() if isinstance(SAMPLERS.load(name), FiniteFactory)}
    assert found == {"grid", "greedy_soup"}
