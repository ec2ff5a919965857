"""Searches that end by themselves, run whole: a greedy soup and an even sweep, also after being stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from evolve.config.load import load
from evolve.engine.evaluator import Evaluator
from evolve.run import run
from tests.cli.kit import call
from tests.driving import left
from tests.search.test_finite import by_hand
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.store.rundir import RunDir

MODELS = ("base", "one", "two")


def greedy(folder: Path) -> Path:
    models = [{"model": name, "parameters": {"weight": {"choices": [0, 1]}}} for name in MODELS]
    merge = {"merge_method": "linear", "models": models, "dtype": "float32"}
    search = {"sampler": "greedy_soup", "trials": 50}
    return make_search(folder, pipeline=[{"merge": merge}], search=search)


def test_a_greedy_soup_to_its_end_and_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = greedy(tmp_path)
    folder = run(load(config), runs=tmp_path / "runs")
    assert folder.state()["reason"] == "exhausted"
    trials = left(folder.path).trials
    points = [tuple(int(value) for _, value in sorted(row[3])) for row in trials]
    table: Any = {point: row[2] for point, row in zip(points, trials, strict=True)}
    assert points[0] == (1, 1, 1)
    looked, best = by_hand(3, table)
    assert points[1:] == [point for point in looked if point != (1, 1, 1)]
    assert best is not None
    assert table[best] >= max(table[soup] for soup in looked)

    whole = Evaluator.evaluate
    for stop in (6,):
        calls = 0

        def stopping(self: Evaluator, job: Any, stop: int = stop) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return whole(self, job)

        monkeypatch.setattr(Evaluator, "evaluate", stopping)
        runs = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(load(config), runs=runs)
        monkeypatch.setattr(Evaluator, "evaluate", whole)
        again = run(load(config), runs=runs)
        assert left(again.path) == left(folder.path), f"stopped at candidate {stop}"


def sweep(folder: Path, trials: int) -> RunDir:
    merge = {
        "merge_method": "wise_ft",
        "base_model": "base",
        "models": [{"model": "one"}],
        "parameters": {"alpha": {"low": 0.0, "high": 1.0, "step": 0.25}},
        "dtype": "float32",
    }
    search = {"sampler": "grid", "trials": trials}
    config = make_search(folder, pipeline=[{"merge": merge}], search=search)
    return run(load(config), runs=folder / "runs")


def test_an_even_sweep(tmp_path: Path) -> None:
    folder = sweep(tmp_path, 50)
    assert folder.state()["reason"] == "exhausted"
    rows = left(folder.path).trials
    assert [row[3][0][1] for row in rows] == [0.5, 0.0, 0.25, 0.75, 1.0]
    baselines = {
        tuple(record.recipe.models): record for record in folder.records() if record.split == "search"
    }
    by_alpha = {row[3][0][1]: row[2] for row in rows}
    for alpha, parent in ((0.0, "base"), (1.0, "one")):
        outcome: Any = baselines[(parent,)].outcome
        assert by_alpha[alpha] == outcome.value, "the ends are the parents"


def test_what_validate_says_of_them(tmp_path: Path) -> None:
    config = greedy(tmp_path)
    found = call("validate", config, "--runs", tmp_path, "engine={kind: ray, evaluators: 2}")
    assert "6 in 6 generations of 1" in found.stdout
    assert found.stderr == ""
    short = call("validate", config, "--runs", tmp_path, "search.trials=4")
    assert "greedy_soup takes 6 trials here" in short.stderr
    for wrong in (
        "parameters.normalize={choices: [false, true]}",
        "models.0.parameters.weight={low: 0, high: 1}",
    ):
        message = call("validate", config, f"pipeline.0.merge.{wrong}", code=2)
        assert "is no switch" in message.stderr
    message = call("validate", config, "search.sampler=grid", "search.population=1", code=2)
    assert "population" in message.stderr
