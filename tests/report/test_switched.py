"""What a search saw of the stages that genes switch, and the loss curves of its winner."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from evolve.cli.options import load_run_config
from evolve.report.collect import Material, collect
from evolve.report.data import to_json
from evolve.report.html import page
from evolve.report.summary import summarise
from evolve.report.switched import Switched, cells, switched_stages
from evolve.score.intervals import welch
from tests.report import switched
from tests.report.test_summary import printed

if TYPE_CHECKING:
    from evolve.report.collect import Trial

MARKS = {"soup": "slerp", "merge": "task_arithmetic"}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    run = switched.make(tmp_path_factory.mktemp("switched"))
    return collect(run, load_run_config(run))


def stages(material: Material) -> dict[str, Switched]:
    trials = different(material)
    best = max(trials, key=lambda trial: trial.value or 0)
    return {one.stage: one for one in switched_stages(material, trials, best)}


def different(material: Material) -> list[Trial]:
    return list({trial.recipe_hash: trial for trial in reversed(material.trials)}.values())


def test_with_against_without_by_the_recipes_and_another_library(material: Material) -> None:
    for name, mark in MARKS.items():
        sides: tuple[list[float], list[float]] = ([], [])
        seconds: tuple[list[float], list[float]] = ([], [])
        for trial in different(material):
            assert trial.recipe is not None and trial.value is not None and trial.outcome is not None
            lacking = mark not in trial.recipe.text
            sides[lacking].append(trial.value)
            seconds[lacking].append(trial.outcome.seconds["total"])
        found = stages(material)[name]
        assert found.candidates == (len(sides[0]), len(sides[1])) and all(found.candidates)
        assert found.means == pytest.approx((np.mean(sides[0]), np.mean(sides[1])))
        ends = stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
        assert found.difference is not None
        assert found.difference.value == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
        assert (found.difference.low, found.difference.high) == pytest.approx((ends.low, ends.high), abs=1e-6)
        assert found.seconds == pytest.approx((np.mean(seconds[0]), np.mean(seconds[1])))


def test_a_stage_without_effect_is_not_had(material: Material) -> None:
    """Where the last merge is off, its base is the result: `soup` is had, `two` is not read."""
    trials = different(material)
    neither = [t for t in trials if t.recipe is not None and not t.recipe.pipeline]
    assert neither, "one of the candidates is the base alone"
    alone = {one.stage: one for one in switched_stages(material, neither[:1], neither[0])}
    for one in alone.values():
        assert (one.on, one.candidates, one.difference, one.means[0]) == (False, (0, 1), None, None)
    assert cells([alone["soup"]])[1][0][:4] == ["soup (merge)", "off", "0 / 1", "-"]


@pytest.mark.parametrize(
    ("first", "second"), [((1.0, 2.0, 4.0), (1.5, 1.0)), ((0.1, 0.2), (5.0, 9.0, 9.5)), ((0, 1), (0, 1))]
)
def test_welch(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    found = welch(np.array(first), np.array(second))
    ends = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-4)


def test_welch_where_there_is_no_spread() -> None:
    alone = welch(np.array([1.0]), np.array([0.0, 2.0, 3.0]))
    assert alone.value == pytest.approx(1 - 5 / 3) and (alone.low, alone.high) == (-math.inf, math.inf)
    same = welch(np.array([1.0, 1.0]), np.array([0.5, 0.5]))
    assert (same.low, same.value, same.high) == (0.5, 0.5, 0.5)


def test_everywhere_it_is_shown(material: Material) -> None:
    summary = summarise(material, "x")
    text = json.dumps(to_json(summary), allow_nan=False)
    found = {one["stage"]: one for one in json.loads(text)["switched"]}
    assert found["merge"]["difference"]["low"] > 0 and found["merge"]["on"] is True
    assert found["soup"]["kind"] == "merge" and found["soup"]["candidates"]["with"] > 0
    html = page(summary)
    assert "Stages on and off in the search" in html and "soup (merge)" in html
    assert any("stages on and off in the search" in line for line in printed(summary))
    assert summarise(replace(material, trials=()), "x").switched == ()


def test_parameters_of_a_stage_that_is_off_are_not_listed(material: Material) -> None:
    summary = summarise(material, "x")
    assert "soup.t" in summary.best_params, summary.best_params
    shown = "<td>soup.t</td>"
    assert shown in page(summary)
    off = tuple(replace(one, on=False) if one.stage == "soup" else one for one in summary.switched)
    html = page(replace(summary, switched=off))
    assert shown not in html and "<td>soup.enabled</td>" in html and "<td>merge.two.weight</td>" in html


def test_the_curves_of_the_winner(material: Material) -> None:
    summary = summarise(material, "x")
    assert summary.training == (switched.CURVE,)
    html = page(summary)
    section = html.partition("How its training went")[2].partition("</section>")[0]
    assert section.count('<path class="best"') == 1 and section.count('<path class="other"') == 1
    assert "loss 2 to 1.5 nats a token, 20 steps, 640 tokens, 3.5 s" in section
    assert to_json(summary)["training"][0]["rows"] == [[10, 2.0, 0.5], [20, 1.5, 0.25]]
    assert any("loss 2 to 1.5" in line for line in printed(summary))
    assert "How its training went" not in page(replace(summary, training=()))
