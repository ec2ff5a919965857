"""A race on tiny models with real lm-eval and the hf engine, killed at random and gone on with."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from evolve.config.load import load
from evolve.engine.evaluator import Evaluator
from evolve.errors import UserError
from evolve.run import evaluator_spec, prepare
from evolve.store.rundir import RunDir
from evolve.types import Job, Scored
from tests.driving import finish, left, start
from tests.small import make_search, make_task

if TYPE_CHECKING:
    from pathlib import Path

SEARCH = {
    "trials": 13,
    "population": 4,
    "seed": 3,
    "racing": {"first": 0.25, "growth": 2.0, "error": 0.5},
    "items_growth": {"first": 0.5, "growth": 1.5, "error": 0.2},
    "estimator": {"dimensions": 2},
}


def parts(run: Path) -> dict[str, object]:
    """Return the key of every part to its outcome, times left out."""
    found = {}
    for path in (run / "candidates").glob("*/parts/*.json"):
        outcome = json.loads(path.read_text())["outcome"]
        outcome.pop("seconds")
        found[path.stem] = outcome
    return found


def done(runs: Path) -> int:
    """Return how many outcomes are on the disk."""
    return len([*runs.glob("small/candidates/**/*.json")])


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("raced")
    config = make_search(folder, search=SEARCH)
    finish(config, folder / "runs")
    return config, folder / "runs" / "small"


def test_only_whole_scores_count_and_they_are_those_of_the_model(raced: tuple[Path, Path]) -> None:
    config, path = raced
    trials = left(path).trials
    assert [row[1] for row in trials].count("complete") == 13
    whole = {row[4]: row[2] for row in trials if row[2] is not None}
    assert 0 < len(whole) < 13
    assert parts(path)
    run = RunDir.open(path)
    assert run.state()["best"] == max(whole.values())
    # Put together from parts, a score is the one that all items at once give.
    prepared = prepare(load(config), runs=path.parent)
    evaluator = Evaluator(evaluator_spec(prepared))
    pieced = {record.recipe.hash: record.recipe for record in run.parts() if record.recipe.hash in whole}
    assert pieced
    for recipe in pieced.values():
        scored = evaluator.evaluate(Job(recipe))
        recorded = run.outcome(Job(recipe), prepared.score_key)
        assert isinstance(scored, Scored)
        assert isinstance(recorded, Scored)
        assert recorded.value == pytest.approx(scored.value, abs=1e-12)
        assert {name: task.items for name, task in recorded.tasks.items()} == {
            name: task.items for name, task in scored.tasks.items()
        }
    # A second part of the recipe that the engine holds needs no build and no load.
    [task] = scored.tasks
    keys = tuple(scored.tasks[task].items)
    first, second = (evaluator.evaluate(Job(recipe, items=((task, some),))) for some in (keys[:5], keys[5:]))
    assert isinstance(first, Scored)
    assert isinstance(second, Scored)
    assert "load" not in second.seconds
    assert {**first.tasks[task].items, **second.tasks[task].items} == scored.tasks[task].items
    evaluator.close()


def test_killed_at_random_instants(raced: tuple[Path, Path], tmp_path: Path) -> None:
    config, path = raced
    draw = random.Random(5)
    kills = rounds = 0
    while kills < 4:
        runs, alive = tmp_path / f"killed-{rounds}", True
        rounds += 1
        while alive and kills < 6:
            goal = done(runs) + draw.randint(1, 6)
            process = start(config, runs)
            while process.is_alive() and done(runs) < goal:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.03))
            alive = process.is_alive()
            kills += alive
            process.kill()
            process.join()
        finish(config, runs)
        assert left(runs / "small") == left(path)
        assert parts(runs / "small") == parts(path)


def test_a_group_races_as_one_task(tmp_path: Path) -> None:
    """Put together from parts, it has the score that all items at once give; alike it is no mean."""
    folder = make_task(tmp_path / "tasks", items=24, name="other_choice")
    group = {"group": "both", "task": ["tiny_choice", "other_choice"]}
    rules = [{"metric": "acc", "weight_by_size": sized} for sized in (False, True)]
    tasks = [{"task": "both", "metric": "acc", "items": 40}]
    config = make_search(tmp_path, search={**SEARCH, "trials": 9}, **{"score.tasks": tasks})
    data = yaml.safe_load(config.read_text())
    data["score"]["shared_text"] = "report"
    config.write_text(yaml.safe_dump(data))
    (folder / "both.yaml").write_text(yaml.safe_dump({**group, "aggregate_metric_list": rules[:1]}))
    with pytest.raises(UserError, match="its tasks count alike"):
        prepare(load(config), runs=tmp_path / "runs")
    (folder / "both.yaml").write_text(yaml.safe_dump({**group, "aggregate_metric_list": rules[1:]}))
    finish(config, tmp_path / "runs")
    prepared = prepare(load(config), runs=tmp_path / "runs")
    run = RunDir.open(tmp_path / "runs" / "small")
    pieced = [record.recipe for record in run.parts()]
    evaluator = Evaluator(evaluator_spec(prepared))
    checked = 0
    for recipe in {recipe.hash: recipe for recipe in pieced}.values():
        recorded = run.outcome(Job(recipe), prepared.score_key)
        if isinstance(recorded, Scored):
            scored = evaluator.evaluate(Job(recipe))
            assert isinstance(scored, Scored)
            assert recorded.value == pytest.approx(scored.value, abs=1e-12)
            assert recorded.tasks["both"].items == pytest.approx(scored.tasks["both"].items)
            checked += 1
    evaluator.close()
    assert checked


@pytest.mark.slow
@pytest.mark.ray
def test_two_ray_evaluators_give_the_same_study(raced: tuple[Path, Path], tmp_path: Path) -> None:
    config, path = raced
    finish(config, tmp_path / "runs", "engine={kind: ray, evaluators: 2}")
    assert left(tmp_path / "runs" / "small") == left(path)
    assert parts(tmp_path / "runs" / "small") == parts(path)


def test_a_metric_that_is_no_mean_cannot_be_raced(tmp_path: Path) -> None:
    config = make_search(tmp_path, search=SEARCH)
    task = tmp_path / "tasks" / "tiny_choice.yaml"
    task.write_text(task.read_text().replace("aggregation: mean", "aggregation: median"))
    with pytest.raises(UserError, match="means over items: tiny_choice"):
        prepare(load(config), runs=tmp_path / "runs")
