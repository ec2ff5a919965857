from dataclasses import replace

import pytest

from evolve.cli.options import load_run_config
from evolve.report import numbers
from evolve.report.collect import collect
from evolve.report.data import to_json
from evolve.report.summary import summarise
from evolve.report.text import facts, tables, verdict
from evolve.store.rundir import RunDir
from evolve.types import Failed, Job, Scored
from tests.report.synthetic import ITEMS, outcome_of


@pytest.fixture(scope="module")
def material(made):
    run = RunDir.open(made[1] / "small")
    return collect(run, load_run_config(run))


def expected_best(material):
    """The best by the formula, from the recipes alone."""
    recipes = {trial.recipe.hash: trial.recipe for trial in material.trials}
    outcomes = {name: outcome_of(Job(recipe)) for name, recipe in recipes.items()}
    scored = {name: outcome.value for name, outcome in outcomes.items() if isinstance(outcome, Scored)}
    return max(scored.values()), {name for name, value in scored.items() if value == max(scored.values())}


def test_best_parents_and_average(material):
    summary = summarise(material, "runs/small")
    value, names = expected_best(material)
    assert summary.best is not None
    assert summary.best.recipe in names
    assert summary.best.scored("search").value == value
    assert summary.best.scored("holdout").value == value, "the formula knows no splits"
    assert [entry.name for entry in summary.table] == ["best", "two", "one", "base", "average"]
    assert summary.best_parent.name == "two"
    assert summary.average.scored("search").value == 0.45


def test_gaps_are_paired_over_items(material):
    """Items are nested here: the better model gets right all that the worse one does, and some more."""
    summary = summarise(material, "runs/small")
    for entry in summary.table[1:]:
        gap = entry.gaps["holdout"]
        difference = summary.best.scored("holdout").value - entry.scored("holdout").value
        assert gap.difference == pytest.approx(difference)
        assert gap.low < difference < gap.high
        unpaired = (summary.best.scored("holdout").stderr ** 2 + entry.scored("holdout").stderr ** 2) ** 0.5
        assert gap.high - gap.low < 2 * 1.96 * unpaired, "pairing makes the interval shorter"
        assert gap.items == ITEMS // 2, "the half that did not choose"
    assert summary.best.gaps == {}


def test_verdict_speaks_of_the_holdout_where_there_is_one(material):
    summary = summarise(material, "x")
    assert verdict(summary).endswith("on holdout items")
    assert "better than the best parent (two) and better than the plain average" in verdict(summary)
    kept = {key: outcome for key, outcome in material.outcomes.items() if key.endswith("-search")}
    without = summarise(replace(material, outcomes=kept), "x")
    assert not without.has_holdout
    assert verdict(without).endswith("on search items")


def test_verdict_is_honest_when_the_best_is_no_better(material):
    average = material.baselines["average"]
    best = summarise(material, "x").best
    same = {**material.outcomes, Job(average, "holdout").key: material.outcomes[f"{best.recipe}-holdout"]}
    found = verdict(summarise(replace(material, outcomes=same), "x"))
    assert "not clearly different from the plain average" in found
    weak = material.outcomes[Job(material.baselines["base"], "holdout").key]
    finalists = {f"{trial.recipe_hash}-holdout" for trial in material.trials}
    worse = {key: weak if key in finalists else outcome for key, outcome in material.outcomes.items()}
    assert "worse than the best parent (two)" in verdict(summarise(replace(material, outcomes=worse), "x"))


def test_curve_states_and_seconds(material):
    summary = summarise(material, "x")
    values = [trial.value for trial in material.trials if trial.value is not None]
    assert [point.value for point in summary.curve] == values
    assert [point.best for point in summary.curve] == [
        max(values[: index + 1]) for index in range(len(values))
    ]
    assert summary.states == {"complete": 9, "failed": 2}
    assert summary.failures == {"timeout": 2}
    different = {trial.recipe_hash for trial in material.trials}
    assert summary.candidates == len(different)
    assert summary.seconds["total"] == len(different)
    assert [kind for _, kind, _ in summary.failed] == ["timeout", "timeout"]


def test_a_repeated_recipe_is_listed_and_counted_once(material):
    best = max((trial for trial in material.trials if trial.value), key=lambda trial: trial.value)
    twin = replace(best, number=99)
    summary = summarise(replace(material, trials=(*material.trials, twin)), "x")
    assert [entry.recipe for entry in summary.top].count(best.recipe_hash) == 1
    assert summary.best.number == best.number, "the earlier one"
    assert summary.seconds == summarise(material, "x").seconds


def test_a_failed_baseline_is_shown_not_hidden(material):
    key = Job(material.baselines["two"]).key
    broken = replace(material, outcomes={**material.outcomes, key: Failed("oom", "no memory")})
    summary = summarise(broken, "x")
    assert [entry.name for entry in summary.parents] == ["one", "base", "two"]
    assert summary.parents[-1].scored("search") is None
    assert any("failed: oom" in line for line in printed(summary))


def test_without_any_trial(material):
    summary = summarise(replace(material, trials=(), outcomes={}), "x")
    assert summary.best is None
    assert "no candidate has a score yet" in verdict(summary)
    assert to_json(summary)["best"] is None
    assert printed(summary)


def test_json_has_no_nan_and_items_on_request(material):
    import json

    summary = summarise(material, "x")
    text = json.dumps(to_json(summary, items=True), allow_nan=False)
    assert "holdout-39" in text
    assert "holdout-39" not in json.dumps(to_json(summary), allow_nan=False)


def test_every_number_of_the_table_has_an_interval(material):
    lines = printed(summarise(material, "x"))
    rows = [line for line in lines if line.strip().startswith(("best", "two", "one", "base", "plain"))]
    assert len(rows) >= 5
    for row in rows[:5]:
        scores = row.count(".") // 3
        assert row.count("[") == scores, row


def printed(summary) -> list[str]:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    for part in tables(summary):
        console.print(part)
    return console.file.getvalue().splitlines()


def test_the_cost_of_restarts_is_shown(material):
    """A phase of its own: its mean over all candidates, beside the other phases, in every form."""
    import json

    from evolve.report.html import page

    some = sorted({trial.recipe_hash for trial in material.trials})[:3]
    trials = []
    for trial in material.trials:
        more = {"restart": 40.0} if trial.recipe_hash in some else {}
        trials.append(
            replace(trial, outcome=replace(trial.outcome, seconds={**trial.outcome.seconds, **more}))
        )
    summary = summarise(replace(material, trials=tuple(trials)), "x")
    mean = 3 * 40.0 / len({trial.recipe_hash for trial in trials})
    ((_, told),) = [fact for fact in facts(summary) if fact[0] == "per candidate"]
    assert dict(part.split(" ", 1) for part in told.split(", "))["restart"] == numbers.duration(mean)
    assert told in page(summary) and any("restart" in line for line in printed(summary))
    assert json.loads(json.dumps(to_json(summary), allow_nan=False))["seconds"]["restart"] == 3 * 40.0
