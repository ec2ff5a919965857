"""Whole searches with a race in them: who is asked what, and that kills change nothing."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from evolve.config.schema import ScoreConfig, SearchConfig
from evolve.registry import SAMPLERS
from evolve.score.objective import objective
from evolve.search.generations import Generations, Plan
from evolve.search.study_searcher import StudySearcher
from evolve.space.genes import Gene
from evolve.store.study import load_trials, open_study
from evolve.types import Failed, Job, Recipe, Scored, TaskScore

from .kit import centre, contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from evolve.store.rundir import RunDir
    from evolve.types import Outcome

GENES = tuple(Gene(f"g{index}", 0.0, 1.0) for index in range(3))
SIZES = {"one": 90, "two": 60}
ITEMS = sum(SIZES.values())
SCORE = ScoreConfig.model_validate({"tasks": [{"task": task, "metric": "acc"} for task in SIZES]})
POPULATION = 6
ALL = {
    "racing": {"first": 0.15, "growth": 2.0, "error": 0.3},
    "items_growth": {"first": 0.3, "growth": 1.5, "error": 0.1},
    "estimator": {"dimensions": 2},
}
ARMS = [
    {"racing": ALL["racing"]},
    {"racing": {**ALL["racing"], "order": "discriminative"}},
    {"items_growth": ALL["items_growth"]},
    {"estimator": {"anchors": 0.3}},
    ALL,
]


class Killed(BaseException):
    """Stands for SIGKILL."""


class Space:
    """Points are recipes; coarse, so that some are found twice."""

    def recipe(self, values: Mapping[str, float], contents: Mapping[str, str]) -> Recipe:
        point = {name: round(value, 1) for name, value in sorted(values.items())}
        return Recipe.make({}, [{"point": point}])


class Result(NamedTuple):
    job: Job
    outcome: Outcome
    attempts: int = 1


def fraction(*parts: object) -> float:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


def answer(recipe: Recipe, task: str, key: str) -> float:
    """Answer an item: right where the recipe's ability is above the item's difficulty."""
    [stage] = recipe.pipeline
    ability = 1 - sum((value - 0.8) ** 2 for value in stage["point"].values())
    return float(ability + 0.3 * fraction(recipe.hash, key) > 1.3 * fraction(task, key))


def outcome_of(job: Job) -> Outcome:
    """Score a job; some recipes fail, at once or on a later part."""
    if fraction(job.recipe.hash, job.items) < 0.06:
        return Failed("build", "cannot be built")
    items = dict(job.items) or {task: [f"{task}{i}" for i in range(n)] for task, n in SIZES.items()}
    tasks = {}
    for task, keys in items.items():
        values = {key: answer(job.recipe, task, key) for key in keys}
        tasks[task] = TaskScore("acc", sum(values.values()) / len(values), math.nan, True, values)
    if job.items:
        return Scored(0.0, math.nan, tasks, {"total": 1.0})
    return Scored(objective(tasks, SCORE)[0], 0.01, tasks, {"total": 1.0})


class Pool:
    """Two workers that finish in a seeded order. It may be killed before or after any job."""

    def __init__(self, countdown: int = 0, seed: int = 0) -> None:
        self.jobs: list[Job] = []
        self._countdown = countdown
        self._order = random.Random(seed)

    def run(self, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> Iterator[Result]:
        waiting = list(jobs)
        while waiting:
            job = waiting.pop(self._order.randrange(min(2, len(waiting))))
            self.tick()
            self.jobs.append(job)
            yield Result(job, outcome_of(job))
            self.tick()

    def tick(self) -> None:
        self._countdown -= 1
        if self._countdown == 0:
            raise Killed


def search(run: RunDir, pool: Pool, arm: Mapping[str, Any], trials: int, name: str = "s") -> StudySearcher:
    """Search to the end; return the searcher."""
    config = SearchConfig.model_validate({"trials": trials, "population": POPULATION, "seed": 5, **arm})
    searcher = StudySearcher(
        open_study(run, None, name),
        GENES,
        SAMPLERS.load("cmaes"),
        population=POPULATION,
        seed=5,
        centre=centre(GENES),
    )
    points = {"a": (0.2, 0.5, 0.9), "b": (0.9, 0.1, 0.4), "average": (0.5, 0.5, 0.6)}
    baselines = {
        key: Recipe.make({}, [{"point": dict(zip("xyz", point, strict=True))}])
        for key, point in points.items()
    }
    plan = Plan(config, POPULATION, {}, baselines, "key", False, SCORE)
    loop = Generations(run, Space(), searcher, plan, pool.run)
    while not loop.step():
        pass
    return searcher


def asked(jobs: Sequence[Job]) -> Counter[str]:
    """Return recipe to the number of its items that were asked."""
    found: Counter[str] = Counter()
    for job in jobs:
        found[job.recipe.hash] += sum(len(keys) for _, keys in job.items) or ITEMS
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_a_search(run: RunDir, arm: Mapping[str, Any]) -> None:
    pool = Pool()
    searcher = search(run, pool, arm, 31)
    rows = [row for row in load_trials(run, None, "s") if row.state == "complete"]
    assert len(rows) == 31
    spent = asked(pool.jobs)
    assert max(spent.values()) <= ITEMS, "no item is asked twice of one recipe"
    assert sum(spent.values()) < 0.9 * ITEMS * len(spent)
    # A value is a score on all items, and on nothing less; what the sampler was told is finite.
    whole = {row.recipe for row in rows if row.value is not None}
    assert whole == {row.recipe for row in rows if spent[row.recipe] == ITEMS}
    for trial in open_study(run, None, "s").get_trials(deepcopy=False):
        assert trial.state.name == "FAIL" or math.isfinite(trial.value)
    best = searcher.best()
    assert best is not None
    scores = {row.number: row.value for row in rows if row.value is not None}
    assert scores[best.number] == max(scores.values())
    for row in rows:
        if row.value is not None:
            recipe = Space().recipe(row.values, {})
            means = [
                sum(answer(recipe, task, f"{task}{i}") for i in range(n)) / n for task, n in SIZES.items()
            ]
            assert row.value == pytest.approx(sum(means) / 2, abs=1e-12)
            recorded = run.outcome(Job(recipe), "key")
            assert isinstance(recorded, Scored)
            assert recorded.value == row.value
    assert searcher.progress().best == max(scores.values())


def test_two_workers_in_another_order_give_the_same_study(run: RunDir, tmp_path: Any) -> None:
    from evolve.store.rundir import RunDir as Folder

    search(run, Pool(seed=1), ALL, 25)
    other = Folder.create(tmp_path / "other", name="other", config_text="", identity={}, parents={})
    search(other, Pool(seed=2), ALL, 25)
    assert contents(open_study(run, None, "s")) == contents(open_study(other, None, "s"))


@pytest.mark.parametrize("arm", [ARMS[0], ALL])
def test_kills_at_any_instant_change_nothing_and_repeat_little(
    run: RunDir, tmp_path: Any, arm: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evolve.store.rundir import RunDir as Folder

    undisturbed = Pool()
    search(run, undisturbed, arm, 25)
    other = Folder.create(tmp_path / "other", name="other", config_text="", identity={}, parents={})
    instants = random.Random(11)
    kills, jobs = 0, []
    tell, record = StudySearcher.tell, Folder.record
    while True:
        pool = Pool(instants.randint(1, 28))

        def told(self: StudySearcher, *values: Any, pool: Pool = pool, **more: Any) -> None:
            pool.tick()
            tell(self, *values, **more)
            pool.tick()

        def recorded(self: Folder, *values: Any, pool: Pool = pool, **more: Any) -> None:
            # Also between the record of a last part and that of the whole.
            pool.tick()
            record(self, *values, **more)
            pool.tick()

        monkeypatch.setattr(StudySearcher, "tell", told)
        monkeypatch.setattr(Folder, "record", recorded)
        try:
            search(other, pool, arm, 25)
        except Killed:
            kills += 1
            jobs += pool.jobs
        else:
            jobs += pool.jobs
            break
    assert kills > 10
    assert contents(open_study(run, None, "s")) == contents(open_study(other, None, "s"))
    assert {job.key for job in jobs} == {job.key for job in undisturbed.jobs}
    records = [{one.job.key: one.outcome for one in each.records()} for each in (run, other)]
    assert records[0].keys() == records[1].keys()
    for key, outcome in records[0].items():
        again = records[1][key]
        assert type(again) is type(outcome)
        if isinstance(outcome, Scored) and isinstance(again, Scored):
            assert (again.value, again.tasks) == (outcome.value, outcome.tasks)
    # A job whose outcome was on its way when its search was killed is done again, no other.
    assert len(jobs) <= len(undisturbed.jobs) + kills


def test_the_first_search_without_a_race_is_as_before(run: RunDir) -> None:
    pool = Pool()
    search(run, pool, {}, 13)
    assert all(not job.items for job in pool.jobs)
    assert all("score" not in trial.user_attrs for trial in open_study(run, None, "s").get_trials())


def test_only_cmaes_can_race() -> None:
    with pytest.raises(ValueError, match="sampler: cmaes"):
        SearchConfig.model_validate({"sampler": "tpe", "racing": {}})
