"""Fixtures: one finished synthetic run for a test session, and copies of it to write into."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING

import pytest

from evolve.store.rundir import RunDir
from tests.report.synthetic import make_run
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def _made(base: Path) -> tuple[Path, Path]:
    config = make_search(base)
    make_run(config, base / "runs")
    return config, base / "runs"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and the folder of runs, in a place with spaces and Unicode in its name. Only to be read."""
    base = tmp_path_factory.getbasetemp() / "größe & maß <b>"
    base.mkdir(exist_ok=True)
    return _made(base)


@pytest.fixture
def runs(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder with a copy of the run ``small``, to write into."""
    target = tmp_path / "läufe hier"
    shutil.copytree(made[1], target)
    return target


@pytest.fixture
def run(runs: Path) -> RunDir:
    return RunDir.open(runs / "small")
