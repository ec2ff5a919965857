"""What every searcher has to do, over every sampler and every storage."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import RunError, UserError
from evolve.registry import SAMPLERS as REGISTRY
from evolve.search.base import Progress
from evolve.search.population import default_population
from evolve.search.study_searcher import StudySearcher, progress_of, seed_of_ask
from evolve.space.genes import Gene
from evolve.store.study import load_trials, open_study, rows

from .kit import MIXED, POPULATION, centre, contents, drive, recipe_of, searcher, value_of

if TYPE_CHECKING:
    from evolve.store.rundir import RunDir

SAMPLERS = ("cmaes", "tpe", "random")

SPHERE = tuple(Gene(f"x{index}", -1.0, 2.0) for index in range(6))


def sphere(number: int, values: dict[str, float]) -> float:
    return -sum((value - 0.7) ** 2 for value in values.values())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rounds_and_tells(run: RunDir, url: str | None, sampler: str) -> None:
    study = open_study(run, url, "s")
    search = searcher(study, sampler)
    assert search.progress() == Progress(0, 0, 0, 1, 0, 0, 0, None)
    assert search.best() is None

    [first] = search.round(10)
    assert first.number == 0
    assert first.values == centre(MIXED)
    assert search.round(10) == [first], "a round that is not told is returned again, and nothing new"
    assert search.progress() == Progress(0, 0, 0, 1, 1, 1, 0, None)
    search.tell(0, 0.5, recipe="r0")
    search.tell(0, 0.7, recipe="other")
    assert search.progress() == Progress(1, 0, 1, POPULATION, 0, 0, 0, 0.5)

    second = search.round(99)
    assert [proposal.number for proposal in second] == [1, 2, 3, 4], "cut to what the generation lacks"
    for proposal in second:
        assert list(proposal.values) == [gene.name for gene in MIXED]
        for gene in MIXED:
            value = proposal.values[gene.name]
            assert gene.low <= value <= gene.high
            if gene.integer:
                assert value == round(value)
            elif gene.step is not None:
                steps = (value - gene.low) / gene.step
                assert steps == pytest.approx(round(steps), abs=1e-6)
    search.tell(3, None, recipe="r3")
    search.tell(1, float("nan"), recipe="r1")
    assert [proposal.number for proposal in search.round(4)] == [2, 4], "no ask before the round is told"
    search.tell(4, 1.5, recipe="r4")
    search.tell(2, 1.5, recipe="r2")
    assert search.progress() == Progress(3, 2, 1, 2, 4, 0, 0, 1.5, failed_here=2)
    best = search.best()
    assert best is not None
    assert best == second[1], "the earliest of equals"
    assert [proposal.number for proposal in search.top(9)][:2] == [2, 4]
    assert search.top(1) == [best]

    assert [proposal.number for proposal in search.round(1)] == [5]
    search.tell(5, 0.0, recipe="r5")
    assert [proposal.number for proposal in search.round(4)] == [6]
    search.tell(6, 0.0, recipe="r6")
    assert search.progress() == Progress(5, 2, 2, POPULATION, 0, 0, 0, 1.5)
    assert search.round(0) == []

    rows = load_trials(run, url, "s")
    assert [(row.number, row.state, row.value, row.recipe) for row in rows] == [
        (0, "complete", 0.5, "r0"),
        (1, "failed", None, "r1"),
        (2, "complete", 1.5, "r2"),
        (3, "failed", None, "r3"),
        (4, "complete", 1.5, "r4"),
        (5, "complete", 0.0, "r5"),
        (6, "complete", 0.0, "r6"),
    ]
    assert rows[1].values == second[0].values


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_order_of_tells_does_not_matter(run: RunDir, sampler: str) -> None:
    """One worker or many: results come back in another order."""

    def search(name: str, seed: int) -> Any:
        study = open_study(run, None, name)
        searching = searcher(study, sampler)
        order = random.Random(seed)
        while (progress := searching.progress()).complete < 21:
            proposals = searching.round(progress.missing)
            order.shuffle(proposals)
            for proposal in proposals:
                values = dict(proposal.values)
                searching.tell(proposal.number, value_of(proposal.number, values), recipe=recipe_of(values))
        return contents(study)

    assert search("a", 0) == search("b", 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds(run: RunDir, sampler: str) -> None:
    studies = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        studies[name] = open_study(run, None, name)
        drive(searcher(studies[name], sampler, seed=seed), 9)
    assert contents(studies["a"]) == contents(studies["b"])
    points = {name: [tuple(t.params.values()) for t in study.get_trials()] for name, study in studies.items()}
    assert points["a"][0] == points["c"][0], "the centre"
    assert not set(points["a"][1:]) & set(points["c"][1:])
    # Whole generations at once, and still no point twice.
    assert len(set(points["a"])) == len(points["a"])


@pytest.mark.parametrize("genes", [SPHERE, MIXED], ids=["continuous", "mixed"])
@pytest.mark.parametrize("population", [4, 7])
@pytest.mark.parametrize("first_fails", [False, True])
def test_no_result_is_lost_to_cmaes(
    run: RunDir, genes: tuple[Gene, ...], population: int, first_fails: bool
) -> None:
    """Every value but the centre's belongs to a generation, and every generation is full."""

    def value(number: int, values: dict[str, float]) -> float | None:
        if number == 0:
            return None if first_fails else 0.0
        return None if number % 5 == 2 else sum(values.values())

    study = open_study(run, None, "s")
    search = searcher(study, "cmaes", genes, population=population)
    # A failed centre is not replaced.
    drive(search, 5 * population + (not first_fails), value)
    prefix = "cmawm" if genes is MIXED else "cma"
    trials = study.get_trials(deepcopy=False)
    tags = Counter(t.system_attrs.get(f"{prefix}:generation") for t in trials if t.state.name == "COMPLETE")
    expected: dict[int | None, int] = dict.fromkeys(range(5), population)
    assert tags == (expected if first_fails else {None: 1, **expected})
    assert f"{prefix}:generation" not in trials[0].system_attrs
    if genes is MIXED:
        assert all("x_for_tell" in trial.system_attrs for trial in trials[1:])
    for trial in trials[1:]:
        assert len(trial.params) == len(genes)


def test_cmaes_does_better_than_random(run: RunDir) -> None:
    best = {}
    for sampler in ("cmaes", "random"):
        study = open_study(run, None, sampler)
        drive(searcher(study, sampler, SPHERE, population=9, seed=3), 181, sphere)
        best[sampler] = study.best_value
    assert best["cmaes"] > -0.005
    assert best["random"] < -0.1


def test_cmaes_finds_the_switches(run: RunDir) -> None:
    genes = (*SPHERE[:3], *(Gene(f"s{index}", 0, 1, step=1, choices=(False, True)) for index in range(3)))

    def value(number: int, values: dict[str, float]) -> float:
        continuous = sum((values[gene.name] - 0.7) ** 2 for gene in SPHERE[:3])
        return -continuous - values["s0"] + 0.5 * values["s1"] - 0.5 * values["s2"]

    study = open_study(run, None, "s")
    drive(searcher(study, "cmaes", genes, population=9, seed=1), 181, value)
    assert [study.best_params[name] for name in ("s0", "s1", "s2")] == [0, 1, 0]


def test_tpe_does_better_than_random(run: RunDir) -> None:
    best = {}
    for sampler in ("tpe", "random"):
        study = open_study(run, None, sampler)
        drive(searcher(study, sampler, SPHERE[:3], population=6, seed=3), 61, sphere)
        best[sampler] = study.best_value
    assert best["tpe"] > best["random"] / 3


@pytest.mark.parametrize("genes", [(), (SPHERE[0],), (SPHERE[0], Gene("one", 2.0, 2.0))])
def test_cmaes_needs_two_genes(run: RunDir, genes: tuple[Gene, ...]) -> None:
    study = open_study(run, None, "s")
    with pytest.raises(UserError, match=r"at least two genes.*tpe or random"):
        searcher(study, "cmaes", genes)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_one_gene(run: RunDir, sampler: str) -> None:
    study = open_study(run, None, "s")
    drive(searcher(study, sampler, SPHERE[:1]), 15, sphere)
    assert len({trial.params["x0"] for trial in study.get_trials()}) == 15


@pytest.mark.parametrize(
    "change",
    [{"genes": SPHERE[:5]}, {"population": 5}, {"seed": 8}, {"sampler": "random"}],
    ids=lambda change: next(iter(change)),
)
def test_another_search_in_the_same_study_is_refused(run: RunDir, change: dict[str, Any]) -> None:
    study = open_study(run, None, "s")
    asked = {"sampler": "cmaes", "genes": SPHERE, "population": 4, "seed": 7}
    drive(searcher(study, **asked), 3, sphere)
    before = contents(study)
    again = searcher(open_study(run, None, "s"), **{**asked, **change})
    with pytest.raises(RunError, match="cannot be mixed"):
        again.round(4)
    with pytest.raises(RunError, match="cannot be mixed"):
        again.tell(1, 0.0, recipe="")
    assert contents(open_study(run, None, "s")) == before


def test_a_second_writer_is_noticed(run: RunDir) -> None:
    intrude = False

    def factory(*args: Any) -> Any:
        if intrude:
            open_study(run, None, "s").ask()
        return REGISTRY.load("random")(*args)

    study = open_study(run, None, "s")
    search = StudySearcher(study, SPHERE, factory, population=4, seed=0, centre=centre(SPHERE))
    drive(search, 1, sphere)
    intrude = True
    with pytest.raises(RunError, match="Only one may write"):
        search.round(1)


def test_a_trial_that_was_never_asked(run: RunDir) -> None:
    search = searcher(open_study(run, None, "s"), "random")
    with pytest.raises(ValueError, match="never asked"):
        search.tell(3, 0.0, recipe="")


def test_a_thousand_trials_are_quick(run: RunDir) -> None:
    """Reading must not grow with what is there: a factor of ten in trials is no factor of ten in time."""
    import time

    study = open_study(run, None, "s")
    search = searcher(study, "random", SPHERE[:2], population=50)
    spent = []
    for _ in range(20):
        began = time.process_time()
        drive(search, search.progress().complete + 50, sphere)
        spent.append(time.process_time() - began)
    assert len(study.get_trials(deepcopy=False)) == 1000
    assert min(spent[-5:]) < 5 * min(spent[:5]) + 0.1


def test_a_hundred_genes(run: RunDir, url: str | None) -> None:
    """Long attributes: the centre's values, the raw point of the margin variant, and the optimizer."""
    genes = (
        *(Gene(f"merge.models.{index}.parameters.weight", 0.0, 1.5) for index in range(98)),
        Gene("s0", 0, 1, step=1, choices=(False, True)),
        Gene("s1", 0, 1, step=1, choices=(False, True)),
    )
    study = open_study(run, url, "s")
    drive(searcher(study, "cmaes", genes, population=4), 6, lambda number, values: sum(values.values()))
    trials = open_study(run, url, "s").get_trials()
    assert [len(trial.params) for trial in trials] == [100] * 6
    assert len(trials[5].system_attrs) > 50


@given(st.integers(0, 2**40), st.integers(0, 10**6))
def test_seeds_of_asks(seed: int, number: int) -> None:
    assert 0 <= seed_of_ask(seed, number) < 2**32
    assert seed_of_ask(seed, number) != seed_of_ask(seed, number + 1)


@pytest.mark.parametrize(
    ("genes", "population"), [(0, 4), (1, 4), (2, 6), (3, 7), (10, 10), (30, 14), (100, 17)]
)
def test_population(genes: int, population: int) -> None:
    assert default_population(genes) == population


class _State:
    def __init__(self, name: str) -> None:
        self.name = name


class _Trial:
    def __init__(self, state: str, value: float | None) -> None:
        self.state = _State(state)
        self.value = value
        self.user_attrs: dict[str, Any] = {}


@given(
    st.integers(2, 5),
    st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=40),
    st.integers(0, 5),
)
def test_progress_counts_as_a_simulation_does(
    population: int, results: list[int | None], running: int
) -> None:
    """The oracle asks generation by generation and keeps books as it goes."""
    trials: list[_Trial] = []
    left = list(results)
    generation, values, asked = 0, [], 0
    bests: list[list[int]] = []
    while left:
        size = 1 if generation == 0 else population
        result = left.pop(0)
        asked += 1
        trials.append(_Trial("FAIL" if result is None else "COMPLETE", result))
        if result is not None:
            values.append(result)
        if len(values) == size or generation == 0:
            bests.append(values)
            generation, values, asked = generation + 1, [], 0
    running = min(running, (population if generation else 1) - len(values))
    trials += [_Trial("RUNNING", None)] * running
    told = [result for result in results if result is not None]
    best = max(told) if told else None
    improved = next((index for index, group in enumerate([*bests, values]) if best in group), 0)
    assert progress_of(trials, population) == Progress(
        complete=len(told),
        failed=len(results) - len(told),
        generation=generation,
        missing=(population if generation else 1) - len(values),
        asked=asked + running,
        running=running,
        stale=0 if best is None or improved == generation else generation - improved - 1,
        best=best,
        failed_here=asked - len(values),
    )


def test_it_is_a_searcher(run: RunDir) -> None:
    from evolve.search.base import Searcher

    search: Searcher = searcher(open_study(run, None, "s"), "random")
    assert isinstance(search, StudySearcher)


def test_the_top_are_different_recipes(run: RunDir) -> None:
    """Against a sort by hand, with values and recipes that repeat."""
    study = open_study(run, None, "s")
    search = searcher(study, "random")
    told: dict[int, tuple[float, str]] = {}
    while len(told) < 13:
        for proposal in search.round(4):
            value, recipe = float(proposal.number * 7 % 5), f"r{proposal.number % 6}"
            told[proposal.number] = (value, recipe)
            search.tell(proposal.number, value, recipe=recipe)
    expected: list[int] = []
    for number in sorted(told, key=lambda number: (-told[number][0], number)):
        if told[number][1] not in {told[one][1] for one in expected}:
            expected.append(number)
    for count in (0, 1, 3, 20):
        assert [proposal.number for proposal in search.top(count)] == expected[:count]


def test_a_score_is_kept_apart_from_what_the_sampler_is_told(run: RunDir) -> None:
    study = open_study(run, None, "s")
    search = searcher(study, "cmaes")
    [first] = search.round(1)
    search.tell(first.number, 0.3, recipe="centre")
    proposals = search.round(POPULATION, items=40)
    told = [(0.9, None), (0.8, 0.5), (0.7, None), (0.6, 0.4)]
    for proposal, (value, score) in zip(proposals[:3], told, strict=False):
        search.tell(proposal.number, value, recipe=f"r{proposal.number}", score=score)
    standing = searcher(open_study(run, None, "s"), "cmaes").standing()
    assert [member.number for member in standing.members] == [1, 2, 3, 4]
    assert standing.items == 40
    assert standing.pending
    assert standing.before == standing.last == ()
    assert standing.past == ("centre",)
    assert standing.incumbent == "centre"
    search.tell(4, 0.6, recipe="r4", score=0.4)
    best = search.best()
    assert best is not None
    assert best.number == 2
    assert search.progress().best == 0.5
    assert [row.value for row in rows(study.get_trials())] == [0.3, None, 0.5, None, 0.4]
    assert [trial.value for trial in study.get_trials()] == [0.3, 0.9, 0.8, 0.7, 0.6]
    # The next generation: one fails and is replaced in a round of its own.
    for proposal in search.round(POPULATION, items=60):
        value = None if proposal.number == 6 else 0.1 * proposal.number
        search.tell(proposal.number, value, recipe=f"r{proposal.number}", score=None)
    standing = search.standing()
    assert standing.items == 60
    assert not standing.pending
    assert [told.number for told in standing.last] == [1, 2, 3, 4]
    [again] = search.round(POPULATION, items=60)
    standing = search.standing()
    assert [member.number for member in standing.members] == [again.number] == [9]
    assert [(told.number, told.recipe) for told in standing.before] == [(5, "r5"), (7, "r7"), (8, "r8")]
    assert standing.before[0].value == 0.5
    assert standing.past == ("centre", "r1", "r2", "r3", "r4", "r5", "r7", "r8")
    assert standing.incumbent == "r2"
