"""The last choice, the table of models, and the parameters over the layers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from evolve.cli.options import load_run_config
from evolve.config.schema import ScoreConfig
from evolve.report import depth_charts
from evolve.report.collect import collect
from evolve.report.data import to_json
from evolve.report.layers import profiles
from evolve.report.sources import Measured, Size, cells, count, sources
from evolve.report.summary import summarise
from evolve.report.text import final_rows, source_rows
from evolve.score.choice import choose, halves
from evolve.space.variants import seeds
from evolve.store.rundir import RunDir
from evolve.types import Failed, Job, Recipe, Scored, TaskScore
from tests.report.test_summary import printed


@pytest.fixture(scope="module")
def material(made):
    run = RunDir.open(made[1] / "small")
    return collect(run, load_run_config(run))


def block(**more) -> ScoreConfig:
    return ScoreConfig.model_validate({"tasks": [{"task": "t", "metric": "acc"}], **more})


def score(values, chance=None) -> TaskScore:
    items = {f"{i:03d}": float(value) for i, value in enumerate(values)}
    return TaskScore("acc", float(np.mean(values)), 0.0, True, items, chance)


def test_the_top_five_were_scored_on_the_holdout(material):
    holdout = {key for key in material.outcomes if key.endswith("-holdout")}
    baselines = {Job(recipe, "holdout").key for recipe in material.baselines.values()}
    trials = sorted((t for t in material.trials if t.value is not None), key=lambda t: (-t.value, t.number))
    best = list(dict.fromkeys(f"{trial.recipe_hash}-holdout" for trial in trials))[:5]
    winner = next(t for t in trials if t.number == summarise(material, "x").best.number).recipe
    others = {Job(recipe, "holdout").key for recipe in seeds(winner, 3)}
    assert len(others) == 3 and holdout == baselines | set(best) | others


def test_one_half_chooses_and_the_other_reports(material):
    """The search's best does badly on the half that chooses, the third one well there and badly elsewhere."""
    first = summarise(material, "x")
    numbers = first.final.numbers
    names = [entry.recipe for entry in first.top][:5]
    outcomes = dict(material.outcomes)
    for place, name in enumerate(names):
        outcome = outcomes[f"{name}-holdout"]
        task = outcome.tasks["tiny_choice"]
        chooses = sorted(task.items)[::2]
        items = {key: float(place == 2 if key in chooses else place != 2) for key in task.items}
        tasks = {"tiny_choice": replace(task, items=items, value=0.5)}
        outcomes[f"{name}-holdout"] = replace(outcome, tasks=tasks, value=0.5)
    summary = summarise(replace(material, outcomes=outcomes), "x")
    assert summary.best.number == summary.final.winner == numbers[2]
    assert summary.best.scored("holdout").value == 0.0, "the half that chose has no say"
    assert summary.final.choice.values == (0, 0, 1, 0, 0)
    shrinkage = summary.best.shrinkage
    assert shrinkage.value == pytest.approx(summary.best.scored("search").value)
    assert shrinkage.low < shrinkage.value < shrinkage.high
    header, lines = final_rows(summary)
    assert [line[0].endswith("(winner)") for line in lines].count(True) == 1
    assert all(len(line) == len(header) for line in lines)
    data = json.loads(json.dumps(to_json(summary), allow_nan=False))
    assert data["final"] == {"winner": numbers[2], "trials": list(numbers), "items": {"tiny_choice": 20}}
    assert data["best"]["shrinkage"]["value"] == pytest.approx(shrinkage.value)


def test_one_candidate_is_reported_on_the_whole_holdout(material):
    best = summarise(material, "x").final.recipes[0]
    others = {f"{trial.recipe_hash}-holdout" for trial in material.trials} - {f"{best}-holdout"}
    kept = {key: outcome for key, outcome in material.outcomes.items() if key not in others}
    summary = summarise(replace(material, outcomes=kept), "x")
    assert summary.final is None and summary.best.recipe == best
    assert len(summary.best.scored("holdout").tasks["tiny_choice"].items) == 40


def test_a_finalist_that_failed_on_the_holdout_is_left_out(material):
    first = summarise(material, "x").final
    outcomes = {**material.outcomes, f"{first.recipes[0]}-holdout": Failed("oom", "no memory")}
    final = summarise(replace(material, outcomes=outcomes), "x").final
    assert final.numbers == first.numbers[1:]


def test_the_choice_counts_losses_beyond_the_limit():
    parents = {"p": {"t": score([1] * 8 + [0] * 8)}}
    strong = {"t": score([1] * 10 + [0] * 6)}
    config = block(retention={"model": "p", "loss": 0.0})
    weak = {"t": score([0] * 16)}
    found = choose([weak, strong], config, parents)
    assert found.winner == 1 and found.values[0] < found.values[1]


def test_the_intervals_of_the_choice_hold_at_once():
    from scipy.stats import binomtest

    rng = np.random.default_rng(0)
    candidates = [{"t": score(rng.random(200) < 0.6)} for _ in range(4)]
    found = choose(candidates, block())
    for tasks, interval in zip(candidates, found.intervals, strict=True):
        items = halves(tasks["t"])[0].items
        level = 1 - 0.05 / 4
        ends = binomtest(int(sum(items.values())), 100).proportion_ci(level, "wilson")
        assert (interval.low, interval.high) == pytest.approx((ends.low, ends.high), abs=1e-9)


def test_the_table_of_models(material):
    summary = summarise(material, "x")
    assert [row.label for row in summary.sources] == [entry.label for entry in summary.table]
    rows = {row.label: row for row in summary.sources}
    # base (.2) is below chance (.25): it has no skill to keep. two has (.4 - .25) of it.
    assert all(row.kept["base"] is None for row in summary.sources)
    two = rows["two"]
    if two.kept["two"] is not None:
        assert two.kept["two"].value == pytest.approx(1) and rows["one"].kept["two"].value < 1
    assert two.size == material.sizes(material.baselines["two"])
    assert two.size.parameters > 1000 and two.size.bytes == 4 * two.size.parameters
    assert two.speed == pytest.approx(40 / 0.5)
    header, lines = source_rows(summary)
    assert header[:2] == ["model", "tiny_choice (acc)"] and "keeps of two" in header
    assert all(len(line) == len(header) for line in lines)
    assert any("keeps of two" in line for line in printed(summary))
    data = to_json(summary)["sources"]
    assert data[0]["model"] == summary.best.label and data[0]["kept"]["base"] is None


def test_what_is_kept_worked_by_hand():
    parent = {"t": score([1] * 75 + [0] * 25, 0.25)}
    model = Scored(0.5, 0.0, {"t": score([1] * 50 + [0] * 50, 0.25)})
    (row,) = sources([Measured("m", model, Size(1_240_000_000, 10))], {"p": parent}, block())
    assert row.kept["p"].value == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert row.kept["p"].low < 0.5 < row.kept["p"].high
    _, lines = cells([row], {"t": "acc"})
    assert lines[0][2].startswith("50 % [") and lines[0][4] == "1.24 B"
    chance = {"t": score([1] * 28 + [0] * 72, 0.25)}
    (row,) = sources([Measured("m", model)], {"p": chance}, block())
    assert row.kept["p"] is None and cells([row], {"t": "acc"})[1][0][2] == "n/a"
    unknown = {"t": replace(parent["t"], chance=None)}
    assert sources([Measured("m", model)], {"p": unknown}, block())[0].kept["p"] is None


def test_a_gain_elsewhere_does_not_make_up_for_a_loss():
    config = ScoreConfig.model_validate({"tasks": [{"task": name, "metric": "acc"} for name in "ab"]})
    parent = {"a": score([1] * 80 + [0] * 20, 0.0), "b": score([1] * 40 + [0] * 60, 0.0)}
    tasks = {"a": score([1] * 40 + [0] * 60, 0.0), "b": score([1] * 90 + [0] * 10, 0.0)}
    (row,) = sources([Measured("m", Scored(0.65, 0.0, tasks))], {"p": parent}, config)
    assert row.kept["p"].value == pytest.approx((0.4 + 0.4) / (0.8 + 0.4))
    assert {name: one.value for name, one in row.kept_tasks["p"].items()} == pytest.approx(
        {"a": 0.5, "b": 2.25}
    )


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (9_312, "9,312"), (42_000, "42 k"), (134_515_008, "135 M")]
)
def test_counts(number, text):
    assert count(number) == text


def test_parameters_over_the_layers():
    merge = {
        "merge_method": "dare_ties",
        "models": [
            {"model": "base"},
            {"model": "a", "parameters": {"weight": [0.0, 1.0], "density": 0.5}},
            {
                "model": "b",
                "parameters": {"weight": [{"filter": "mlp", "value": [1, 0, 1]}, {"value": -0.25}]},
            },
        ],
        "parameters": {"lambda": 2, "normalize": True},
    }
    found = profiles(Recipe.make({"a": "x"}, [{"merge": merge}]), 5)
    shown = {(one.model, one.name): one.values for one in found}
    assert shown == {
        ("a", "weight"): (0, 0.25, 0.5, 0.75, 1),
        ("a", "density"): (0.5,) * 5,
        ("b", "weight (mlp)"): (1, 0.5, 0, 0.5, 1),
        ("b", "weight (the rest)"): (-0.25,) * 5,
        ("all (merge)", "lambda"): (2,) * 5,
    }
    svg = depth_charts.layers([(f"{one.model}: {one.name}", one.values) for one in found], "t")
    assert svg.count("<rect") == 25 and svg.count("minus") == 5
    assert "nan" not in svg and depth_charts.layers([], "t") == ""
    assert depth_charts.layers([("zero", (0.0, 0.0))], "t")


def test_the_winner_of_a_random_method_comes_with_a_warning(material):
    alone = {recipe.hash for recipe in seeds(summarise(material, "x").best_recipe, 3)[1:]}
    left = {key: outcome for key, outcome in material.outcomes.items() if key.split("-")[0] not in alone}
    lines = printed(summarise(replace(material, outcomes=left), "x"))
    assert any("one draw" in line and "other seeds are not scored" in line for line in lines)


def test_shared_text_is_in_the_report(material):
    from evolve.report.html import page

    found = {"task": "tiny_choice", "split": "holdout", "corpus": "data/<a>.txt", "items": 20, "shared": 3}
    state = {**material.state, "overlaps": [{**found, "short": 0, "keys": ["k"]}]}
    summary = summarise(replace(material, state=state), "x")
    line = "3 of 20 holdout items of tiny_choice share text with data/<a>.txt"
    assert any(line in text for text in printed(summary))
    assert line.replace("<", "&lt;").replace(">", "&gt;") in page(summary)
    assert to_json(summary)["overlaps"][0]["shared"] == 3


def test_a_text_that_could_not_be_read_is_not_listed_as_clean(material):
    one = {"task": "tiny_choice", "split": "holdout", "items": 20, "shared": 0, "short": 0, "keys": []}
    broken = {**one, "corpus": "broken.jsonl", "unread": "line 3 is no text"}
    state = {**material.state, "overlaps": [broken, {**one, "corpus": "clean.txt", "unread": ""}]}
    lines = printed(summarise(replace(material, state=state), "x"))
    assert any("broken.jsonl could not be read to its end: line 3 is no text" in line for line in lines)
    assert any(line.rstrip().endswith("no item shares text with clean.txt") for line in lines)


def test_the_verb_best_lists_the_winner_first(material):
    from evolve.cli.best import _winner_first

    summary = summarise(material, "x", top=2)
    last = summary.finalists[-1]
    chosen = replace(summary, best=replace(summary.best, recipe=last.recipe, number=last.number))
    assert [entry.recipe for entry in _winner_first(chosen, 2).top] == [last.recipe, summary.top[0].recipe]
    inside = replace(summary, best=replace(summary.best, recipe=summary.top[1].recipe))
    assert [entry.recipe for entry in _winner_first(inside, 2).top] == [
        summary.top[1].recipe,
        summary.top[0].recipe,
    ]
    assert _winner_first(replace(summary, best=None), 2).top == summary.top
