"""Gain against forgetting of all candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evolve.cli.options import load_run_config
from evolve.config.load import load, load_text
from evolve.config.schema import ScoreConfig
from evolve.errors import ConfigError
from evolve.report.collect import Material, collect
from evolve.report.data import to_json
from evolve.report.html import page
from evolve.report.summary import summarise
from evolve.report.trade import Trade, cells, pair, start_of
from evolve.score.intervals import Interval
from evolve.score.statistics import compare
from evolve.types import Scored, TaskScore
from tests.report import switched
from tests.report.test_summary import printed
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    run = switched.make(tmp_path_factory.mktemp("trade"))
    return collect(run, load_run_config(run))


def trade(material: Material) -> Trade:
    found = summarise(material, "x").trade
    assert found is not None
    return found


def test_every_candidate_is_where_the_formula_puts_it(material: Material) -> None:
    found = trade(material)
    assert found.start == "base"
    recipes = {trial.recipe_hash: trial.recipe for trial in material.trials}
    candidates = {point.recipe: point for point in found.points if point.number is not None}
    assert candidates.keys() == recipes.keys()
    for name, recipe in recipes.items():
        assert recipe is not None
        new, old = switched.rights(recipe)
        both = candidates[name].search
        assert both.gain.value == pytest.approx((new - 10) / 40)
        assert both.forgetting.value == pytest.approx((32 - old) / 40)
        if not recipe.pipeline:
            assert both.gain == both.forgetting == Interval(0, 0, 0), "the start again"
        assert both.gain.low <= both.gain.value <= both.gain.high
        assert both.forgetting.low <= both.forgetting.value <= both.forgetting.high
    assert any(recipe is not None and not recipe.pipeline for recipe in recipes.values())
    marks = {point.name: point.mark for point in found.points if point.number is None}
    assert marks == {"base": "start", "one": "parent", "two": "parent"}
    assert [point.mark for point in found.points].count("winner") == 1


def test_the_front_by_comparing_all_pairs(material: Material) -> None:
    found = trade(material)
    places = {
        point.name: (point.search.gain.value, point.search.forgetting.value)
        for point in found.points
        if point.number is not None
    }
    expected = {
        name
        for name, (gain, loss) in places.items()
        if not any(g >= gain and f <= loss and (g > gain or f < loss) for g, f in places.values())
    }
    assert {point.name for point in found.front} == expected
    gains = [point.search.gain.value for point in found.front]
    assert gains == sorted(gains) and len(gains) > 1


def test_the_intervals_are_those_of_the_paired_differences(material: Material) -> None:
    """Each alone is the comparison of two models on one task; forgetting is the start minus the model."""
    found = trade(material)
    point = next(one for one in found.points if one.mark == "winner")
    trial = next(one for one in material.trials if one.recipe_hash == point.recipe)
    began = material.outcome(material.baselines["base"], "search")
    assert isinstance(began, Scored) and trial.scored is not None
    for task, ours, first, second in (
        ("new", point.search.gain, trial.scored.tasks, began.tasks),
        ("old", point.search.forgetting, began.tasks, trial.scored.tasks),
    ):
        alone = ScoreConfig.model_validate({"tasks": [{"task": task, "metric": "acc"}]})
        oracle = compare({task: first[task]}, {task: second[task]}, alone)
        assert (ours.low, ours.high) == pytest.approx((oracle.low, oracle.high))


def test_several_tasks_and_metrics_that_are_better_when_lower() -> None:
    """Real numbers: Student's intervals of the tasks' differences, squared and added (by hand)."""
    rng = np.random.default_rng(5)

    def task(values: Any, higher: bool) -> TaskScore:
        items = {f"{i:03d}": float(value) for i, value in enumerate(values)}
        return TaskScore("m", float(np.mean(values)), 0.1, higher, items)

    before = {name: rng.normal(size=30) for name in "abc"}
    after = {name: values + rng.normal(0.3, 0.2, size=30) for name, values in before.items()}
    higher = {"a": True, "b": True, "c": False}
    ours = {name: task(values, higher[name]) for name, values in after.items()}
    start = {name: task(values, higher[name]) for name, values in before.items()}
    picture = Trade("s", {"gain": {"a": "m", "b": "m"}, "retention": {"c": "m"}}, ())
    found = pair(ours, start, picture)
    assert found is not None
    differences = {name: after[name] - before[name] for name in "abc"}
    halves = {
        name: 2.0452296421 * values.std(ddof=1) / np.sqrt(30) for name, values in differences.items()
    }  # the two-sided 95 % quantile of t with 29 degrees of freedom
    gain = (differences["a"].mean() + differences["b"].mean()) / 2
    half = np.hypot(halves["a"], halves["b"]) / 2
    assert (found.gain.value, found.gain.low, found.gain.high) == pytest.approx(
        (gain, gain - half, gain + half), abs=1e-6
    )
    # A loss that rises is worse: forgetting above 0.
    loss = differences["c"].mean()
    assert loss > 0
    assert (found.forgetting.value, found.forgetting.low, found.forgetting.high) == pytest.approx(
        (loss, loss - halves["c"], loss + halves["c"]), abs=1e-6
    )
    assert pair({"a": ours["a"]}, start, picture) is None
    other = {name: replace(one, items={"x": 1.0}) for name, one in ours.items()}
    assert pair(other, start, picture) is None, "no item in common"


def test_in_the_terminal_json_and_html(material: Material) -> None:
    summary = summarise(material, "x")
    assert summary.trade is not None
    header, rows = cells(summary.trade)
    assert header == ["model", "front", "gain", "forgetting", "gain (holdout)", "forgetting (holdout)"]
    shown = {row[0]: row for row in rows}
    assert shown["base (start)"][2:] == ["0", "0", "0", "0"], "a model does not differ from itself"
    winner = next(row for name, row in shown.items() if name.endswith("(winner)"))
    assert winner[1] == ("on it" if any(p.mark == "winner" for p in summary.trade.front) else "off it")
    assert all("[" in cell for cell in winner[2:])
    few = cells(summary.trade, most=2)[1]
    on = [point.name for point in summary.trade.front]
    assert [row[0].split(" (")[0] for row in few if row[1] == "on it"][:2] == [on[0], on[-1]]
    assert any("gain against forgetting, counted from base" in line for line in printed(summary))
    data = json.loads(json.dumps(to_json(summary), allow_nan=False))["trade"]
    assert data["tasks"] == {"gain": {"new": "acc"}, "retention": {"old": "acc"}}
    assert len(data["points"]) == len(summary.trade.points)
    html = page(summary)
    section = html.partition("Gain against forgetting")[2].partition("</section>")[0]
    assert section.count("<circle") == len(summary.trade.points) - 3
    assert section.count('<path class="mark"') == 3
    assert "gain: acc of new, better than base by" in section


def test_without_roles_there_is_no_picture(material: Material) -> None:
    score = material.loaded.config.score
    assert score is not None
    plain = score.model_copy(
        update={"tasks": [task.model_copy(update={"role": None}) for task in score.tasks]}
    )
    config = material.loaded.config.model_copy(update={"score": plain})
    summary = summarise(replace(material, loaded=replace(material.loaded, config=config)), "x")
    assert summary.trade is None and to_json(summary)["trade"] is None
    assert "Gain against forgetting" not in page(summary)
    base = material.baselines["base"]
    lost = {key: one for key, one in material.outcomes.items() if key != f"{base.hash}-search"}
    assert summarise(replace(material, outcomes=lost), "x").trade is None, "the start has no score"


def test_one_role_alone_is_an_error_with_a_place(tmp_path: Path) -> None:
    tasks = [{"task": "a", "metric": "acc", "role": "gain"}]
    with pytest.raises(ConfigError) as caught:
        load(make_search(tmp_path, **{"score.tasks": tasks}))
    (problem,) = caught.value.problems
    assert problem.path == "score" and "role: retention" in problem.message
    assert ".yaml:" in problem.where
    scorers = [{"size": {"role": "retention"}}]
    loaded = load(make_search(tmp_path, **{"score.tasks": tasks, "score.scorers": scorers}))
    assert loaded.config.score is not None
    assert [entry.role for entry in loaded.config.score.counted] == ["gain", "retention"]
    tasks[0]["role"] = "gian"
    with pytest.raises(ConfigError, match="gain"):
        load(make_search(tmp_path, **{"score.tasks": tasks}))


START = """\
models: {{a: a, b: b, c: c}}
pipeline:
{pipeline}
score: {{tasks: [{{task: t, metric: acc, role: gain}}, {{task: u, metric: acc, role: retention}}]{more}}}
"""


@pytest.mark.parametrize(
    ("pipeline", "more", "start"),
    [
        ("  - cpt: {model: b, dataset: {path: x}}", "", "b"),
        (
            "  - merge: {merge_method: ties, base_model: c, models: "
            "[{model: a, parameters: {weight: 1, density: 1}}]}",
            "",
            "c",
        ),
        ("  - merge: {merge_method: linear, models: [{model: b, parameters: {weight: 1}}]}", "", "a"),
        ("  - cpt: {model: b, dataset: {path: x}}", ", retention: {model: c}", "c"),
        ("  - cpt: {model: b, dataset: {path: x}}", ", retention: {model: c}, start: a", "a"),
    ],
)
def test_where_gain_is_counted_from(pipeline: str, more: str, start: str) -> None:
    assert start_of(load_text(START.format(pipeline=pipeline, more=more), "c.yaml")) == start


def test_the_start_is_a_model_and_changes_no_score(material: Material, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is named 'bass'") as caught:
        load(make_search(tmp_path, **{"score.start": "bass"}))
    assert {problem.path for problem in caught.value.problems} == {"score.start", "score"}
    assert "nothing has a role" in str(caught.value)
    score = material.loaded.config.score
    assert score is not None
    config = material.loaded.config.model_copy(update={"score": score.model_copy(update={"start": "two"})})
    found = trade(replace(material, loaded=replace(material.loaded, config=config)))
    before = {point.name: point.search for point in trade(material).points}
    assert found.start == "two" and before.keys() == {point.name for point in found.points}
    for point in found.points:
        # `two` has 20 and 12 right of 40, `base` 10 and 32.
        assert point.search.gain.value == pytest.approx(before[point.name].gain.value - 10 / 40)
        assert point.search.forgetting.value == pytest.approx(before[point.name].forgetting.value - 20 / 40)
