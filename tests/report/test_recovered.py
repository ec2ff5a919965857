"""Gap recovered: the share of the way from the student to its teacher, with an interval that covers it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evolve.cli.options import load_run_config
from evolve.report.collect import collect
from evolve.report.html import page
from evolve.report.recovered import recovered
from evolve.report.sources import to_json
from evolve.report.summary import summarise
from evolve.report.text import source_rows
from evolve.store.rundir import RunDir
from evolve.types import Job, Recipe, Scored, TaskScore

COUNT = 200


def score(values: np.ndarray) -> TaskScore:
    items = {str(place): float(value) for place, value in enumerate(values)}
    return TaskScore("acc", float(np.mean(values)), 0.0, True, items)


def right(share: float) -> TaskScore:
    """The same items are the easy ones for all."""
    return score(np.arange(COUNT) < share * COUNT)


def test_it_is_the_share_of_the_way() -> None:
    models = {"x": right(0.5)}, {"x": right(0.25)}, {"x": right(0.75)}
    found = recovered(*models)["x"]
    assert found is not None and found.value == pytest.approx(0.5)
    assert 0.2 < found.low < 0.5 < found.high < 0.8
    for after, share in ((models[1], 0.0), (models[2], 1.0)):
        exact = recovered(after, *models[1:])["x"]
        assert exact is not None and (exact.value, exact.low, exact.high) == pytest.approx((share,) * 3)
    # Whichever direction is better, a distance that halves is half of the way.
    half = recovered({"x": score(np.full(9, 0.5))}, {"x": score(np.full(9, 1.0))}, {"x": score(np.zeros(9))})
    assert half["x"] is not None and half["x"].value == pytest.approx(0.5)


def test_without_a_clear_gap_there_is_no_number() -> None:
    assert recovered({"x": right(0.5)}, {"x": right(0.5)}, {"x": right(0.505)}) == {"x": None}
    assert recovered({"x": right(0.5)}, {"x": right(0.5)}, {"x": right(0.5)}) == {"x": None}
    assert recovered({"x": right(0.5)}, {}, {"x": right(0.9)}) == {}


def test_the_interval_covers_the_truth() -> None:
    """Models that answer each item by chance, drawn anew; the truth is that of the chances."""
    draw = np.random.default_rng(5)
    inside = known = 0
    for _ in range(400):
        hard = draw.random(COUNT) * 0.4 - 0.2
        before, after, teacher = (
            {"x": score(draw.random(COUNT) < share + hard)} for share in (0.3, 0.55, 0.7)
        )
        found = recovered(after, before, teacher)["x"]
        known += found is not None
        inside += found is not None and found.low <= 0.625 <= found.high
    assert known > 380 and 0.925 < inside / known < 0.98


@pytest.mark.parametrize("output", [False, True])
def test_the_report_has_it_where_a_recipe_distils(made, output) -> None:
    """The student is a parent, or what is left of the winner without its last stage."""
    _, runs = made
    run = RunDir.open(runs / "small")
    material = collect(run, load_run_config(run))
    assert not any("gap recovered" in name for name in source_rows(summarise(material, "x"))[0])
    best = summarise(material, "x").best
    merge = material.trials[0].recipe.pipeline[0]["merge"]
    first = [{"merge": {**merge, "name": "mixed"}}] if output else []
    block = {
        "model": "mixed" if output else "base",
        "teacher": {"kind": "hf", "model": "two"},
        "dataset": {"path": "x.jsonl", "content": f"sha256:{'0' * 64}"},
        "loss_functions": [{"function": "kl"}],
        "seed": 3,
    }
    contents = {name: parent.content for name, parent in material.parents.items()}
    used = contents if output else {name: contents[name] for name in ("base", "two")}
    recipe = Recipe.make(used, [*first, {"distill": block}])
    trials = tuple(
        replace(trial, recipe=recipe, recipe_hash=recipe.hash)
        for trial in material.trials
        if trial.recipe_hash == best.recipe
    )
    shares = {"base": 0.2, "two": 0.6}
    outcomes = {Job(recipe, split).key: scored(0.4, split) for split in ("search", "holdout")}
    outcomes |= {
        Job(material.baselines[name], split).key: scored(share, split)
        for name, share in shares.items()
        for split in ("search", "holdout")
    }
    if output:
        [alone] = [Recipe.make(contents, [{"merge": merge}])]
        outcomes[Job(alone, "holdout").key] = scored(0.2, "holdout")
    summary = summarise(replace(material, trials=trials, outcomes={**material.outcomes, **outcomes}), "x")
    header, cells = source_rows(summary)
    column = header.index("gap recovered (tiny_choice)")
    assert cells[0][column].startswith("50 %") and {row[column] for row in cells[1:]} == {"-"}
    assert [row[0] for row in cells if row[0] == "student before"] == (["student before"] if output else [])
    assert "gap recovered:" in page(summary)
    [told] = [row["gap_recovered"] for row in to_json(summary.sources) if "gap_recovered" in row]
    assert told["tiny_choice"]["value"] == pytest.approx(0.5)


def scored(share: float, split: str) -> Scored:
    items = {f"{split}-{place}": float(place % 10 < 10 * share) for place in range(40)}
    return Scored(share, 0.01, {"tiny_choice": TaskScore("acc", share, 0.01, True, items, chance=0.25)})
