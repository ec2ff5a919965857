"""Values that depend on the parents: told the same after any kill, whatever the evaluators report."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from evolve.cli.options import load_run_config
from evolve.config.load import load
from evolve.config.older import completed
from evolve.errors import ConfigError, Interrupted
from evolve.report.collect import collect
from evolve.report.summary import summarise
from evolve.score.objective import objective, shortfalls
from evolve.store.rundir import RunDir
from evolve.types import Scored, TaskScore
from tests.report import synthetic
from tests.report.synthetic import make_run, outcome_of, skill
from tests.small import make_search


def two_tasks(job):
    """What `two` is good at costs what `one` is good at."""
    outcome = outcome_of(job)
    level = skill(job)
    if len(job.recipe.models) == 1:
        other = {"base": 0.3, "one": 0.8, "two": 0.2}[next(iter(job.recipe.models))]
    else:
        other = 0.9 - 0.8 * level
    tasks = {}
    for name, rate in (("tiny_choice", level), ("second", other)):
        items = {f"{job.split}-{i}": float(i < round(40 * rate)) for i in range(40)}
        tasks[name] = TaskScore("acc", round(40 * rate) / 40, 0.05, True, items, 0.25)
    value = sum(task.value for task in tasks.values()) / 2
    return replace(outcome, tasks=tasks, value=value)


def prepare(folder, **score):
    """Return a config of two tasks; the second one need not exist, for nothing is really scored."""
    return make_search(
        folder,
        **{
            "score.tasks": [
                {"task": "tiny_choice", "metric": "acc", "items": 20},
                {"task": "second", "metric": "acc", "items": 20},
            ],
            **{f"score.{key}": value for key, value in score.items()},
        },
    )


@pytest.fixture(
    params=[{"objective": "normalised"}, {"objective": "worst", "retention": {"model": "one", "loss": 0.3}}]
)
def config(request, tmp_path):
    return prepare(tmp_path, **request.param)


def told(run):
    material = collect(run, load_run_config(run))
    return material, {trial.recipe_hash: trial.value for trial in material.trials if trial.value is not None}


def test_the_study_is_told_the_objective_beside_the_parents(config, tmp_path):
    material, values = told(make_run(config, tmp_path / "runs", score=two_tasks))
    score, parents = material.loaded.config.score, material.reference("search")
    assert set(parents) == {"base", "one", "two"}
    assert len(values) > 3 and len(set(values.values())) > 2
    for trial in material.trials:
        if trial.value is not None:
            expected, _ = objective(trial.scored.tasks, score, parents)
            assert trial.value == expected == trial.scored.value
    summary = summarise(material, "x")
    assert summary.best is not None and summary.final is not None
    state = json.loads((material.path / "state.json").read_text())
    assert state["best_parent"] == max(objective(tasks, score, parents)[0] for tasks in parents.values())


def test_who_loses_too_much_is_scored_and_ranks_last(tmp_path):
    config = prepare(tmp_path, retention={"model": "one", "loss": 0.3})
    material, values = told(make_run(config, tmp_path / "runs", score=two_tasks))
    score, parents = material.loaded.config.score, material.reference("search")
    broken, kept = [], []
    for trial in material.trials:
        if isinstance(trial.outcome, Scored):
            lost = shortfalls(trial.outcome.tasks, score, parents)
            (broken if lost else kept).append(values[trial.recipe_hash])
    assert broken and kept and max(broken) < min(kept)


def test_killed_anywhere_the_study_is_told_the_same(config, tmp_path, monkeypatch):
    """The evaluation stops after a random number of jobs, again and again."""
    monkeypatch.setattr(synthetic, "FAILING", ())
    expected = told(make_run(config, tmp_path / "whole", score=two_tasks))[1]
    draw = random.Random(5)

    class Kill(Exception):
        pass

    def killing():
        left = draw.randint(0, 3)

        def score(job):
            nonlocal left
            left -= 1
            if left < 0:
                raise Kill
            return two_tasks(job)

        return score

    for _ in range(60):
        try:
            run = make_run(config, tmp_path / "killed", score=killing())
            break
        except (Kill, Interrupted):
            continue
    else:
        pytest.fail("it never came to its end")
    assert told(run)[1] == expected


def test_an_unknown_model_to_keep_is_an_error_at_its_place(tmp_path):
    config = make_search(tmp_path, **{"score.retention": {"model": "onne", "loss": 0.1}})
    with pytest.raises(
        ConfigError, match=r"small.yaml:\d+:\d+: score.retention.model: no model is named 'onne'"
    ):
        load(config)
    with pytest.raises(ConfigError, match="did you mean 'one'"):
        load(config)
    for override in ("score.objective=best", "score.retention={loss: 0.1}", "score.holdout.top=0"):
        with pytest.raises(
            ConfigError, match=override.partition("=")[0].removeprefix("score.").split(".")[0]
        ):
            load(make_search(tmp_path), [override])


def test_a_run_from_before_these_keys_goes_on(tmp_path):
    """Its identity lacks them; at their defaults nothing has changed."""
    new = load(make_search(tmp_path)).config.model_dump(mode="json", exclude={"name", "models"})
    old = json.loads(json.dumps(new))
    for key in ("objective", "retention", "shared_text"):
        del old["score"][key]
    del old["score"]["holdout"]["top"]
    assert completed(old) == new
    old["score"]["gone"] = 1
    assert completed(old) == old


def test_records_say_the_value_that_was_told(config, tmp_path):
    run = make_run(config, tmp_path / "runs", score=two_tasks)
    _, values = told(run)
    for record in RunDir.open(run.path).records():
        if record.split == "search" and record.recipe.hash in values:
            assert record.outcome.value == values[record.recipe.hash]
