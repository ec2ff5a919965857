"""The new tokens of a winner before anything has trained them: a row of its own in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evolve.cli.options import load_run_config
from evolve.report.collect import collect
from evolve.report.data import to_json
from evolve.report.html import page
from evolve.report.summary import summarise
from evolve.report.variants import alone_rows
from evolve.types import Failed, Scored, TaskScore
from evolve.weights.content import file_content
from tests.report.synthetic import ITEMS, make_run
from tests.report.test_summary import printed
from tests.small import make_search


def score(job):
    """New tokens cost 6 items of 40; a training adds 10, and each further seed takes one of them."""
    right = 14
    for entry in job.recipe.pipeline:
        if "vocab" in entry:
            right -= 6
        if "cpt" in entry:
            right += 13 - entry["cpt"]["seed"]
    items = {f"{job.split}-{place}": float(place < right) for place in range(ITEMS)}
    task = TaskScore("acc", right / ITEMS, 0.05, True, items, chance=0.25)
    return Scored(right / ITEMS, 0.05, {"tiny_choice": task}, {"total": 1.0})


def searched(folder, *, ablations=True, training=True, score=score):
    (folder / "terms.txt").write_text("zebra\n")
    (folder / "text.txt").write_text("a zebra\n")
    files = {name: str(folder / f"{name}.txt") for name in ("terms", "text")}
    known = {name: {"path": path, "content": file_content(Path(path))} for name, path in files.items()}
    pipeline = [{"vocab": {"model": "base", "terms": known["terms"], "num_new_tokens": 1}}]
    if training:
        pipeline[0]["vocab"]["name"] = "wide"
        cpt = {"model": "wide", "dataset": known["text"]}
        cpt["training_args"] = {"learning_rate": {"choices": [1e-4, 1e-3]}}
        pipeline.append({"cpt": cpt})
    else:
        pipeline[0]["vocab"]["init"] = {"norm": {"choices": [0.5, 1.0]}}
    changes = {"pipeline": pipeline, "score.holdout.ablations": ablations}
    changes |= {"search.trials": 2, "search.sampler": "random"}
    return summarise(read(make_run(make_search(folder, **changes), folder / "runs", score=score)), "x")


def read(run):
    return collect(run, load_run_config(run))


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("extension"))


def test_its_score_its_damage_and_what_the_training_makes_of_it(summary):
    found = summary.variants.alone
    assert found.score.values == pytest.approx((8 / ITEMS,))
    assert found.damage.value == pytest.approx(-6 / ITEMS) and found.damage.high < 0
    assert found.behind.value == pytest.approx((10 + 9 + 8) / 3 / ITEMS), "over three seeds"
    assert [one.stage for one in summary.variants.stages] == ["wide", "cpt"], "beside what stages are worth"


def test_every_form_of_the_report_has_the_row(summary):
    header, ((name, *shown),) = alone_rows(summary.variants.alone)
    assert name == "extension alone" and len(shown) == len(header) - 1
    assert any("extension alone" in line for line in printed(summary))
    assert "extension alone" in page(summary)
    data = json.loads(json.dumps(to_json(summary), allow_nan=False))["variants"]["extension_alone"]
    assert data["damage"]["value"] == pytest.approx(-6 / ITEMS)


def test_without_stages_behind_it_the_winner_is_the_extension(tmp_path):
    found = searched(tmp_path, training=False).variants
    assert found.stages == () and found.alone.behind is None
    assert found.alone.damage.value == pytest.approx(-6 / ITEMS)
    assert "extension alone" in page(searched(tmp_path, training=False))


def test_nobody_asked(tmp_path):
    found = searched(tmp_path, ablations=False)
    assert found.variants.alone is None and "extension alone" not in page(found)


def test_one_that_fails_says_so(tmp_path):
    def failing(job):
        alone = [kind for entry in job.recipe.pipeline for kind in entry] == ["vocab"]
        return Failed("oom", "too large") if alone and job.split == "holdout" else score(job)

    found = searched(tmp_path, score=failing)
    assert alone_rows(found.variants.alone)[1] == [["extension alone", "failed: oom", "-", "-"]]
    lost = replace(found, variants=replace(found.variants, alone=None))
    assert to_json(lost)["variants"]["extension_alone"] is None
