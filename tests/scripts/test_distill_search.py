"""The search for a loss is held against settings by hand at equal trials, paired by seed."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.config.load import load_text
from evolve.space.space import derive
from tests.scripts.loading import ROOT, load_script


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return load_script("bench/distill_search")


def options(out: Path) -> argparse.Namespace:
    return argparse.Namespace(demo=Path("demo"), out=out, trials=18, tokens=500, items=20, holdout=30)


def test_every_way_has_the_same_trials_items_and_text(bench: Any, tmp_path: Path) -> None:
    plain = {way: bench.config_of(way, 3, options(tmp_path)) for way in bench.WAYS}
    loaded = {way: load_text(yaml.safe_dump(one), f"{way}.yaml") for way, one in plain.items()}
    assert {one.config.search.trials for one in loaded.values()} == {18}
    assert {one.config.search.seed for one in loaded.values()} == {3}
    hand, search, random = plain.values()
    assert hand["score"] == search["score"] == random["score"]
    assert search["pipeline"] == random["pipeline"]
    assert hand["pipeline"][0]["distill"]["dataset"] == search["pipeline"][0]["distill"]["dataset"]
    # By hand there are as many settings as trials, each inside the ranges of the search.
    inside = {gene.name: gene for gene in derive(loaded["search"]).genes}
    by_hand = derive(loaded["hand"]).genes
    assert len(by_hand) == 3 and {gene.name for gene in by_hand} < inside.keys()
    assert math.prod(len(values) for values in bench.HAND.values()) == 18
    for name, values in zip(("learning_rate", "temperature", "weight"), bench.HAND.values(), strict=True):
        [gene] = [inside[one.name] for one in by_hand if one.name.endswith(name)]
        assert gene.low <= min(values) and max(values) <= gene.high


def test_a_search_that_is_finished_is_read(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tmp_path)
    text = yaml.safe_dump(bench.config_of("search", 0, given), sort_keys=False)
    (tmp_path / "search-0.yaml").write_text(text)
    found = {"intervals": {"search": {"value": 0.6}, "holdout": {"value": 0.5}}}
    parents = [{"name": name, "intervals": {"holdout": {"value": value}}} for name, value in (("base", 0.3),)]
    report = {"best": found, "params": {"a": 1}, "trials": 18, "elapsed": 5.0, "parents": parents}
    (tmp_path / "search-0").mkdir()
    (tmp_path / "search-0/report.json").write_text(json.dumps(report))
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: pytest.fail("it was searched again"))
    assert bench.searched("search", 0, given) == {
        "search": 0.6,
        "holdout": 0.5,
        "params": {"a": 1},
        "trials": 18,
        "seconds": 5.0,
        "parents": {"base": 0.3},
    }


# t of 4 degrees is 2.776: five values of standard deviation .01 reach .0124 to each side.
FIVE = (-0.01265, -0.00632, 0.0, 0.00632, 0.01265)


@pytest.mark.parametrize(
    ("middle", "verdict"),
    [(0.02, "better"), (0.004, "at least as good"), (0.0, "cannot tell"), (-0.02, "worse")],
)
def test_at_least_as_good_is_what_the_interval_says(bench: Any, middle: float, verdict: str) -> None:
    assert bench.judged([middle + one for one in FIVE]) == verdict
    assert bench.judged([middle]) == "cannot tell from one seed"


def test_the_table_pairs_the_ways_by_seed(bench: Any) -> None:
    def one(score: float) -> dict[str, Any]:
        return {"holdout": score, "parents": {"base": 0.3, "towns": 0.9}}

    found = {
        seed: {"hand": one(0.5 + seed / 10), "search": one(0.6 + seed / 10), "random": one(0.4)}
        for seed in (0, 1)
    }
    lines = bench.report(found).splitlines()
    assert lines[2] == "| 0 | 0.500 | 0.600 | 0.400 | 0.300 | 0.900 |"
    assert "| search - hand | 0.100 ± 0.000 | better |" in lines
    assert "| random - hand | -0.150 ± 0.635 | cannot tell |" in lines
