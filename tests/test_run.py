"""The main job on tiny models with real lm-eval, real Optuna storage and the hf engine, killed at random."""

from __future__ import annotations

import json
import random
import time

import pytest

from evolve.config.load import load
from evolve.errors import RunError, UserError
from evolve.run import prepare
from tests.driving import finish, left, records, start
from tests.small import make_search


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A search that nobody disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    config = make_search(folder)
    finish(config, folder / "runs")
    return config, folder / "runs" / "small"


def test_a_search_scores_baselines_trials_and_holdout(reference):
    _, run = reference
    found = left(run)
    assert [trial[1] for trial in found.trials].count("complete") == 9
    assert found.trials[0][3], "trial 0 has every gene"
    keys = found.outcomes
    # base, one, two, average and 9 trials on the search items; on the holdout the best five, the baselines,
    # and the winner, whose masks are random, with two more seeds
    assert sum(key.endswith("-search") for key in keys) == 4 + len({trial[4] for trial in found.trials})
    assert sum(key.endswith("-holdout") for key in keys) == 4 + 5 + 2
    best = max(trial[2] for trial in found.trials)
    state = json.loads((run / "state.json").read_text())
    assert state["best"] == best
    assert state["reason"] == "trials"


def test_the_same_command_again_does_nothing(reference):
    config, run = reference
    before = records(run)
    trials = left(run).trials
    finish(config, run.parent)
    assert records(run) == before
    assert left(run).trials == trials


def test_killed_at_twenty_random_instants(reference, tmp_path):
    """No finished candidate is lost or repeated, and the study is the one of the undisturbed search."""
    config, run = reference
    expected = left(run)
    draw = random.Random(11)
    kills = rounds = 0
    began = time.monotonic()
    finish(config, tmp_path / "undisturbed")
    duration = time.monotonic() - began
    while kills < 20:
        runs = tmp_path / f"runs-{rounds}"
        rounds += 1
        known: dict = {}
        while kills < 20:
            process = start(config, runs)
            process.join(draw.uniform(0.05, 0.8) * duration)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            now = records(runs / "small") if (runs / "small").exists() else {}
            for key, value in known.items():
                assert now[key] == value, f"{key} was lost or done twice"
            known = now
        finish(config, runs)
        now = records(runs / "small")
        assert all(now[key] == value for key, value in known.items())
        assert left(runs / "small") == expected
        leftovers = [path.name for path in (runs / "small").rglob("*") if ".tmp" in path.name]
        assert not leftovers


def test_another_seed_gives_other_recipes(reference, tmp_path):
    config, run = reference
    finish(config, tmp_path / "runs", "search.seed=4")
    assert left(tmp_path / "runs" / "small").trials != left(run).trials


def test_a_changed_config_stops_and_shows_what_changed(reference, tmp_path):
    config, _ = reference
    runs = tmp_path / "runs"
    finish(config, runs, "search.trials=5")
    first = records(runs / "small")
    changed = load(config, ("search.trials=9",))
    with pytest.raises(RunError, match=r"search.trials: 5 -> 9(.|\n)*--allow-config-change"):
        prepare(changed, runs=runs)
    finish(config, runs, "search.trials=9", allow=True)
    now = records(runs / "small")
    assert all(now[key] == value for key, value in first.items()), "finished work is kept"
    assert sum(trial[1] == "complete" for trial in left(runs / "small").trials) == 9


def test_a_changed_space_starts_a_new_study_in_the_run(reference, tmp_path):
    config, _ = reference
    runs = tmp_path / "runs"
    override = "pipeline.0.merge.models.0.parameters.weight={low: 0, high: 1}"
    finish(config, runs, "search.trials=5")
    before = json.loads((runs / "small" / "state.json").read_text())["study"]
    finish(config, runs, "search.trials=5", override, allow=True)
    after = json.loads((runs / "small" / "state.json").read_text())["study"]
    assert before != after
    assert sum(trial[1] == "complete" for trial in left(runs / "small").trials) == 5


def test_two_drivers_on_one_run(tmp_path):
    config = make_search(tmp_path, **{"search.trials": 40})
    first = start(config, tmp_path / "runs")
    lock = tmp_path / "runs" / "small" / "study"
    while not lock.exists():
        time.sleep(0.05)
        assert first.is_alive()
    with pytest.raises(AssertionError, match=f"pid {first.pid}"):
        finish(config, tmp_path / "runs")
    first.kill()
    first.join()


def test_nothing_to_search_is_a_user_error(tmp_path):
    config = make_search(
        tmp_path,
        pipeline=[
            {"merge": {"merge_method": "linear", "models": [{"model": "one", "parameters": {"weight": 1}}]}}
        ],
    )
    with pytest.raises(UserError, match=r"no range|evolve build"):
        prepare(load(config), runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("override", "reason"),
    [("search.target=0.0", "target"), ("search.timeout=0.01", "timeout"), ("search.patience=1", "patience")],
)
def test_stop_rules(tmp_path, override, reason):
    config = make_search(tmp_path, **{"search.trials": 60})
    finish(config, tmp_path / "runs", override)
    state = json.loads((tmp_path / "runs" / "small" / "state.json").read_text())
    assert state["reason"] == reason


def linear(first: object, second: object) -> list[dict]:
    models = [
        {"model": "one", "parameters": {"weight": first}},
        {"model": "two", "parameters": {"weight": second}},
    ]
    return [{"merge": {"merge_method": "linear", "models": models, "dtype": "float32"}}]


def test_identical_recipes_are_scored_once_and_failures_are_replaced(tmp_path):
    """Two switches: weights (1, 1) and (2, 2) can be built, weights that cancel cannot."""
    pipeline = linear({"choices": [-1, 1]}, {"choices": [-1, 1]})
    config = make_search(tmp_path, pipeline=pipeline, **{"search.trials": 9, "search.sampler": "random"})
    finish(config, tmp_path / "runs")
    found = left(tmp_path / "runs" / "small")
    states = [trial[1] for trial in found.trials]
    assert states.count("complete") == 9
    assert states.count("failed") > 0
    recipes = {trial[4] for trial in found.trials}
    assert len(recipes) <= 4 < len(found.trials)
    searched = [key for key in found.outcomes if key.endswith("-search")]
    assert len(searched) <= len(recipes) + 4
    kinds = {outcome["kind"] for outcome in found.outcomes.values() if outcome["state"] == "failed"}
    assert kinds == {"invalid_recipe"}


def test_a_generation_in_which_all_fails_ends_the_run_with_the_failures(tmp_path):
    config = make_search(
        tmp_path,
        **{
            "pipeline": [
                {
                    "merge": {
                        "merge_method": "task_arithmetic",
                        "base_model": "base",
                        "models": [
                            {"model": name, "parameters": {"weight": {"low": 1.0e7, "high": 1.0e8}}}
                            for name in ("one", "two")
                        ],
                        "dtype": "float16",  # overflows
                    }
                }
            ]
        },
    )
    with pytest.raises(AssertionError, match=r"generation 1 failed: 8 candidates asked(.|\n)*non_finite"):
        finish(config, tmp_path / "runs")
    states = [trial[1] for trial in left(tmp_path / "runs" / "small").trials]
    assert states == ["failed"] * 9, "the centre, and twice the population"


def test_parents_in_another_place(reference, tmp_path):
    """The same content is the same run; what is exported comes from where the parents are now."""
    import shutil

    config, run = reference
    shutil.copytree(run.parent, tmp_path / "runs")
    moved = tmp_path / "moved"
    for name in ("base", "one", "two"):
        shutil.copytree(config.parent / name, moved / name)
    before = records(tmp_path / "runs" / "small")
    places = [f"models.{name}={moved / name}" for name in ("base", "one", "two")]
    finish(config, tmp_path / "runs", *places)
    parents = json.loads((tmp_path / "runs" / "small" / "parents.json").read_text())
    assert {parent["path"] for parent in parents.values()} == {str(moved / name) for name in parents}
    assert records(tmp_path / "runs" / "small") == before
