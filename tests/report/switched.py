"""A finished run in which genes switch two stages, scored by a formula on two tasks with roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.types import Scored, TaskScore, Training
from tests.report.synthetic import make_run
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.store.rundir import RunDir
    from evolve.types import Job, Outcome, Recipe

ITEMS = 40
"""Of each task and split."""
SWITCH = {"choices": [False, True]}
CURVE = Training("soup", 20, 640, 3.5, ("step", "loss", "kl"), ((10, 2.0, 0.5), (20, 1.5, 0.25)))


def rights(recipe: Recipe) -> tuple[int, int]:
    """Return how many items of `new` and of `old` a recipe gets right, out of 40.

    The stage `soup` gains a little and forgets nothing; the last merge gains a lot and forgets.
    """
    if not recipe.pipeline:
        return {"base": (10, 32), "one": (12, 20), "two": (20, 12)}[next(iter(recipe.models))]
    methods = [entry["merge"]["merge_method"] for entry in recipe.pipeline]
    if methods == ["linear"] and "name" not in recipe.text:
        return 15, 24
    new, old = 10, 32
    if "slerp" in methods:
        new += 3
    for entry in recipe.pipeline:
        if entry["merge"]["merge_method"] == "task_arithmetic":
            weight = entry["merge"]["models"][0]["parameters"]["weight"]
            new, old = new + round(26 * weight), old - round(6 * weight)
    return new, old


def score(job: Job) -> Outcome:
    """Items are nested: with more right, all that fewer had right are right too."""
    new, old = rights(job.recipe)
    tasks = {}
    for name, right in (("new", new), ("old", old)):
        items = {f"{name}-{job.split}-{index:02d}": float(index < right) for index in range(ITEMS)}
        tasks[name] = TaskScore("acc", right / ITEMS, 0.05, True, items, chance=0.25)
    value = (new + old) / ITEMS / 2
    last = "task_arithmetic" in job.recipe.text
    seconds = {"build": 0.5, "total": 1.0 + 2.0 * last + (new % 3) / 10}
    training = (CURVE,) if "slerp" in job.recipe.text else ()
    return Scored(value, 0.05, tasks, seconds, training=training)


def make(folder: Path) -> RunDir:
    """Search, and return the run's folder."""
    pipeline = [
        {
            "merge": {
                "name": "soup",
                "enabled": SWITCH,
                "merge_method": "slerp",
                "base_model": "base",
                "models": [{"model": "base"}, {"model": "one"}],
                "parameters": {"t": {"low": 0.0, "high": 1.0}},
            }
        },
        {
            "merge": {
                "enabled": SWITCH,
                "merge_method": "task_arithmetic",
                "base_model": "soup",
                "models": [{"model": "two", "parameters": {"weight": {"low": 0.2, "high": 1.0}}}],
            }
        },
    ]
    tasks = [
        {"task": "new", "metric": "acc", "role": "gain"},
        {"task": "old", "metric": "acc", "role": "retention"},
    ]
    changes = {"pipeline": pipeline, "score.tasks": tasks, "search.trials": 17, "search.sampler": "random"}
    return make_run(make_search(folder, **changes), folder / "runs", score=score)
