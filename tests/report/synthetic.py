"""A run folder made by the real search over the real space, scored by a formula instead of an engine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.config.dump import resolved_yaml
from evolve.config.load import Loaded, load
from evolve.store.rundir import RunDir
from evolve.types import Failed, Job, Outcome, Parent, Scored, TaskScore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEY = "0123456789abcdef"
ITEMS = 40


@dataclass(frozen=True)
class Done:
    job: Job
    outcome: Outcome
    attempts: int = 1


def skill(job: Job) -> float:
    """The share of items that a recipe gets right: parents are weak, larger weights of `two` are better."""
    if not job.recipe.pipeline:
        return {"base": 0.2, "one": 0.35, "two": 0.4}[next(iter(job.recipe.models))]
    block = job.recipe.pipeline[0]["merge"]
    if block["merge_method"] == "linear":
        return 0.45
    weight = next(m for m in block["models"] if m["model"] == "two")["parameters"]["weight"]
    mean = sum(weight) / len(weight) if isinstance(weight, list) else weight
    return min(0.95, 0.3 + 0.35 * mean)


FAILING = 3, 7
"""Which of the candidates fail, counted as they are scored: what a sampler asks for differs between CPUs."""


def outcome_of(job: Job) -> Outcome:
    """A deterministic outcome."""
    right = round(skill(job) * ITEMS)
    items = {f"{job.split}-{index}": float(index < right) for index in range(ITEMS)}
    value = right / ITEMS
    stderr = (value * (1 - value) / (ITEMS - 1)) ** 0.5
    task = TaskScore("acc", value, stderr, True, items, chance=0.25)
    seconds = {"build": 0.25, "load": 0.125, "score": 0.5, "total": 1.0}
    return Scored(value, stderr, {"tiny_choice": task}, seconds, log="what it said\n")


def make_run(
    config: Path, runs: Path, *, steps: int = 1000, score: Callable[[Job], Outcome] = outcome_of
) -> RunDir:
    """Search the config of ``tests.small.make_search``, or go on with it, and return the run's folder.

    Args:
        config: The config.
        runs: Folder for runs.
        steps: Generations to run at most.
        score: What comes of a job.
    """
    from evolve.registry import SAMPLERS
    from evolve.search.generations import Generations, Plan
    from evolve.search.study_searcher import StudySearcher
    from evolve.space.baselines import baselines
    from evolve.space.space import derive
    from evolve.store.study import open_study

    place: dict[str, int] = {}

    def evaluate(jobs: Sequence[Job], should_stop: Callable[[], bool]) -> Iterator[Done]:
        for job in jobs:
            if "dare" in job.recipe.text:
                place.setdefault(job.recipe.hash, len(place) + 1)
            if place.get(job.recipe.hash) in FAILING and job.split == "search":
                failed = Failed("timeout", "slower than <1> s & more", seconds={"total": 1.0}, log="a log\n")
                yield Done(job, failed)
            else:
                yield Done(job, score(job))

    loaded = load(config)
    found = _parents(loaded)
    contents = {name: parent.content for name, parent in found.items()}
    name = loaded.config.name or "run"
    if (runs / name / "run.json").exists():
        run = RunDir.open(runs / name)
    else:
        run = RunDir.create(
            runs / name,
            name=name,
            config_text=resolved_yaml(loaded),
            identity={"some": "identity"},
            parents=found,
        )
    space = derive(loaded)
    search = loaded.config.search
    population = search.population or 4
    run.write_state(
        started=time.time() - 60,
        trials=search.trials,
        population=population,
        score_key=KEY,
        study="study",
        evaluators=1,
    )
    study = open_study(run, None, "study")
    searcher = StudySearcher(
        study,
        space.genes,
        SAMPLERS.load(search.sampler),
        population=population,
        seed=search.seed,
        centre=space.centre(),
    )
    plan = Plan(search, population, contents, baselines(loaded, contents), KEY, True, loaded.config.score)
    loop = Generations(run, space, searcher, plan, evaluate)
    for _ in range(steps):
        if loop.step():
            break
    return run


def _parents(loaded: Loaded) -> dict[str, Parent]:
    from evolve.weights.content import content_of

    return {
        name: Parent(name, source, str(Path(source).absolute()), content=content_of(source))
        for name, source in loaded.config.models.items()
    }
