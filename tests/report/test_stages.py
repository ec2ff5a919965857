"""Which stages pay: the winner without each of them, and what the search's candidates say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from evolve.cli.options import load_run_config
from evolve.report.collect import Material, collect
from evolve.report.data import to_json
from evolve.report.html import page
from evolve.report.stages import cells
from evolve.report.summary import summarise
from evolve.types import Failed
from tests.report import switched
from tests.report.test_summary import printed

if TYPE_CHECKING:
    from evolve.report.collect import Trial
    from evolve.report.stages import StageWorth


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    run = switched.make(tmp_path_factory.mktemp("switched"))
    return collect(run, load_run_config(run))


def stages(material: Material) -> dict[str, StageWorth]:
    return {one.stage: one for one in summarise(material, "x").stages}


def different(material: Material) -> list[Trial]:
    return list({trial.recipe_hash: trial for trial in reversed(material.trials)}.values())


MARKS = {"soup": "slerp", "merge": "task_arithmetic"}


def test_the_winner_without_each_of_its_stages(material: Material) -> None:
    """By the formula: the difference over the items of the half of the holdout that had no say."""
    best = summarise(material, "x").best
    assert best is not None
    recipe = next(trial.recipe for trial in material.trials if trial.recipe_hash == best.recipe)
    assert recipe is not None and all(mark in recipe.text for mark in MARKS.values())
    new, old = switched.rights(recipe)
    weight = recipe.pipeline[-1]["merge"]["models"][0]["parameters"]["weight"]
    expected = {
        "soup": ((new, old), (new - 3, old)),
        "merge": ((new, old), (new - round(26 * weight), old + round(6 * weight))),
    }
    for name, ((n1, o1), (n2, o2)) in expected.items():
        found = stages(material)[name]
        half = range(1, switched.ITEMS, 2)
        gain = sum((i < n1) - (i < n2) + (i < o1) - (i < o2) for i in half) / len(half) / 2
        assert found.on and found.ablated is not None
        assert found.ablated.difference == pytest.approx(gain)
        assert found.ablated.low < gain < found.ablated.high
        assert found.ablated.items == 2 * len(half)
    assert stages(material)["merge"].verdict == "pays"


def test_with_against_without_is_welchs_interval(material: Material) -> None:
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
        oracle = stats.ttest_ind(*sides, equal_var=False)
        ends = oracle.confidence_interval(0.95)
        assert found.difference is not None
        assert found.difference.value == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
        assert (found.difference.low, found.difference.high) == pytest.approx((ends.low, ends.high), abs=1e-6)
        assert found.seconds == pytest.approx((np.mean(seconds[0]), np.mean(seconds[1])))


def test_what_was_built_for_it_chooses_nothing(material: Material) -> None:
    """A variant may be a trial of its own: it was not to choose from, and stays out of the choice."""
    summary = summarise(material, "x")
    assert summary.final is not None
    assert list(summary.final.recipes) == material.state["finalists"]
    ranked = sorted(different(material), key=lambda trial: (-(trial.value or 0), trial.number))
    last = ranked[-1]
    first = material.outcomes[f"{ranked[0].recipe_hash}-holdout"]
    more = {**material.outcomes, f"{last.recipe_hash}-holdout": first}
    again = summarise(replace(material, outcomes=more), "x").final
    assert again is not None and again.numbers == summary.final.numbers
    old_run = {key: value for key, value in material.state.items() if key != "finalists"}
    older = summarise(replace(material, outcomes=more, state=old_run), "x").final
    assert older is not None and last.number in older.numbers, "a run of before does not say who they were"


def test_words_for_what_is_not_known(material: Material) -> None:
    bare = {trial.recipe_hash for trial in material.trials} | {r.hash for r in material.baselines.values()}
    kept = {key: one for key, one in material.outcomes.items() if key.partition("-")[0] in bare}
    summary = summarise(material, "x")
    assert summary.best is not None
    variants = material.outcomes.keys() - kept.keys()
    assert variants, "the winner without a stage is no trial here"
    missing = stages(replace(material, outcomes=kept))
    assert "not built" in {one.verdict for one in missing.values()}
    broken = {**kept, **{key: Failed("oom", "no memory") for key in variants}}
    failed = stages(replace(material, outcomes=broken))
    assert "failed: oom" in {one.verdict for one in failed.values()}
    assert all(one.ablated is None for one in failed.values() if one.verdict.startswith("failed"))
    off = next(t for t in different(material) if t.recipe is not None and "slerp" not in t.recipe.text)
    alone = replace(material, trials=(off,))
    one = stages(alone)["soup"]
    assert (one.verdict, one.candidates, one.difference) == ("off in the winner", (0, 1), None)
    assert cells([one])[1][0][2:6] == ["-", "0 / 1", "-", "-"]


def test_everywhere_it_is_shown(material: Material) -> None:
    summary = summarise(material, "x")
    text = json.dumps(to_json(summary), allow_nan=False)
    found = {one["stage"]: one for one in json.loads(text)["stages"]}
    assert found["merge"]["verdict"] == "pays" and found["merge"]["ablation"]["low"] > 0
    assert found["soup"]["kind"] == "merge" and found["soup"]["candidates"]["with"] > 0
    html = page(summary)
    assert "Which stages pay" in html and "soup (merge)" in html
    assert any("which stages pay" in line for line in printed(summary))
    assert summarise(replace(material, trials=()), "x").stages == ()


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
