"""The winner with other seeds and without its stages, from the search to every form of the report."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import yaml

from evolve.cli.options import load_run_config
from evolve.report.collect import collect
from evolve.report.data import to_json
from evolve.report.html import page
from evolve.report.summary import summarise
from evolve.report.variants import facts, rows
from evolve.types import Failed
from tests.report.synthetic import ITEMS, make_run, outcome_of
from tests.report.test_summary import printed
from tests.small import make_search


def stages(job):
    """Return the blocks of the merges by their weight's place: the first and the second one."""
    return [next(iter(entry.values())) for entry in job.recipe.pipeline]


def right(outcome, count):
    """Return an outcome with ``count`` more items right."""
    ((name, task),) = outcome.tasks.items()
    level = round(task.value * ITEMS) + count
    items = {key: float(place < level) for place, key in enumerate(task.items)}
    task = replace(task, items=items, value=level / ITEMS)
    return replace(outcome, tasks={name: task}, value=task.value)


def lucky(job):
    """Each further seed costs 4 items of 40, on both halves."""
    outcome = outcome_of(job)
    return right(outcome, -4 * stages(job)[0]["seed"]) if "dare" in job.recipe.text else outcome


def read(run):
    return summarise(collect(run, load_run_config(run)), "x")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return read(make_run(make_search(folder), folder / "runs", score=lucky))


def test_the_seeds_of_the_winner_are_scored(summary):
    found = summary.variants
    assert found.drawing == ("merge",) and found.failed == 0 and found.stages == ()
    best = summary.best.scored("holdout").value
    assert found.seeds.values == pytest.approx((best, best - 0.1, best - 0.2))
    assert found.seeds.spread == pytest.approx(0.1)
    assert found.seeds.mean.value == pytest.approx(best - 0.1)
    reach = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's quantile at two degrees of freedom
    assert found.seeds.mean.high - found.seeds.mean.value > reach


def test_they_are_held_against_the_baselines(summary):
    parent = summary.best_parent
    gain = summary.variants.gains[parent.label]
    assert gain.value == pytest.approx(summary.variants.seeds.mean.value - parent.scored("holdout").value)
    assert set(summary.variants.gains) == {parent.label, "plain average"}


def test_every_form_of_the_report_has_them(summary):
    label, text = facts(summary.variants)[0]
    assert label == "the recipe over 3 seeds" and "standard deviation 0.1000" in text
    assert any(text in line for line in printed(summary))
    assert label in page(summary) and "one draw" not in page(summary)
    data = json.loads(json.dumps(to_json(summary), allow_nan=False))["variants"]
    assert data["seeds"]["values"] == pytest.approx(summary.variants.seeds.values)


def test_a_seed_that_fails_is_counted(tmp_path):
    def failing(job):
        own = "dare" in job.recipe.text and stages(job)[0]["seed"] == 5
        return Failed("oom", "too large") if own else lucky(job)

    found = read(make_run(make_search(tmp_path), tmp_path / "runs", score=failing)).variants
    assert found.failed == 1 and len(found.seeds.values) == 2
    assert "1 more failed" in facts(found)[0][1]


def test_one_seed_is_what_it_was(tmp_path):
    run = make_run(make_search(tmp_path, **{"score.holdout.seeds": 1}), tmp_path / "runs", score=lucky)
    assert facts(read(run).variants)[0][0] == "one draw"


def two_stages(folder, **changes):
    """Return a config in which a first merge feeds the second one, both of them always on."""
    path = make_search(folder, **changes)
    data = yaml.safe_load(path.read_text())
    second = data["pipeline"][0]["merge"]
    first = {"name": "first", "merge_method": "linear", "models": [{"model": "base"}, {"model": "one"}]}
    second["models"][0]["model"] = "first"
    data["pipeline"] = [{"merge": {**first, "parameters": {"weight": 1.0}}}, {"merge": second}]
    path.write_text(yaml.safe_dump(data))
    return path


def test_which_stages_pay(tmp_path):
    """The first merge is worth 6 items, whatever the seed."""

    def score(job):
        if job.recipe.pipeline and "dare" in job.recipe.text:
            block = stages(job)[-1]
            plain = replace(job, recipe=type(job.recipe).make(job.recipe.models, [{"merge": block}]))
            outcome = right(outcome_of(plain), -12 - block["seed"])
            return right(outcome, 6) if "first" in job.recipe.text else outcome
        return outcome_of(job)

    config = two_stages(tmp_path, **{"score.holdout.ablations": True})
    summary = read(make_run(config, tmp_path / "runs", score=score))
    first, second = summary.variants.stages
    assert (first.stage, second.stage) == ("first", "merge2")
    assert first.gain.value == pytest.approx(6 / ITEMS)
    assert len(first.without.values) == 3 and len(second.without.values) == 1
    assert second.without.values == (summary.parents[-1].scored("holdout").value,), "the base is left"
    header, cells = rows(summary.variants)
    assert [row[0] for row in cells] == ["first", "merge2"] and all(len(row) == len(header) for row in cells)
    assert "Which stages pay" in page(summary) and any(
        "which stages pay" in line for line in printed(summary)
    )
    data = json.loads(json.dumps(to_json(summary), allow_nan=False))["variants"]["stages"]
    assert data[0]["gain"]["value"] == pytest.approx(6 / ITEMS)


def test_the_winner_without_a_stage_is_no_finalist(tmp_path):
    """It may be the recipe of another trial, whose holdout score must not enter the choice."""
    config = two_stages(tmp_path, **{"score.holdout.ablations": True, "score.holdout.top": 2})
    run = make_run(config, tmp_path / "runs")
    assert len(read(run).final.numbers) == 2


def test_a_kill_before_the_variants_changes_nothing(tmp_path):
    class Killed(Exception):
        pass

    whole = make_run(make_search(tmp_path / "a"), tmp_path / "a" / "runs", score=lucky)
    seen = []

    def killed(job):
        if job.split == "holdout" and "dare" in job.recipe.text and stages(job)[0]["seed"] == 4:
            raise Killed
        return lucky(job)

    def counted(job):
        seen.append(job.key)
        return lucky(job)

    config = make_search(tmp_path / "b")
    with pytest.raises(Killed):
        make_run(config, tmp_path / "b" / "runs", score=killed)
    again = make_run(config, tmp_path / "b" / "runs", score=counted)
    assert len(seen) == 2, "only the two other seeds were left"
    assert read(again).variants == read(whole).variants
