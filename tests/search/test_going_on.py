"""A search that ended with failures goes on when their cause is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evolve.cli.options import load_run_config
from evolve.errors import RunError
from evolve.report.collect import collect
from evolve.report.summary import summarise
from evolve.types import Failed, Job, Outcome
from tests.report.synthetic import make_run, outcome_of
from tests.small import make_search

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FULL = Failed("build", "No space left on device")


def failing(broken: Callable[[Job], bool]) -> Callable[[Job], Outcome]:
    return lambda job: FULL if broken(job) else outcome_of(job)


def is_average(job: Job) -> bool:
    return "linear" in job.recipe.text


def test_a_generation_that_failed_is_gone_on_with(tmp_path: Path) -> None:
    config = make_search(tmp_path)
    for _ in range(2):
        with pytest.raises(RunError, match="Mend the cause; the same command goes on"):
            make_run(config, tmp_path / "runs", score=failing(lambda job: "dare" in job.recipe.text))
    run = make_run(config, tmp_path / "runs")
    found = collect(run, load_run_config(run))
    assert [trial.state for trial in found.trials].count("complete") == 9
    assert summarise(found, "x").failures["build"] > 8, "nothing is forgotten"


def test_a_parent_that_failed_is_tried_again(tmp_path: Path) -> None:
    config = make_search(tmp_path)
    with pytest.raises(RunError, match=r"baseline 'one' cannot be scored.*the same command tries again"):
        make_run(config, tmp_path / "runs", score=failing(lambda job: list(job.recipe.models) == ["one"]))
    run = make_run(config, tmp_path / "runs")
    assert summarise(collect(run, load_run_config(run)), "x").best is not None


def test_a_search_goes_on_without_the_average(tmp_path: Path) -> None:
    run = make_run(make_search(tmp_path), tmp_path / "runs", score=failing(is_average))
    summary = summarise(collect(run, load_run_config(run)), "x")
    assert summary.best is not None
    assert summary.average is not None
    assert summary.average.outcome("search") == FULL
    assert run.state()["average"] is None
