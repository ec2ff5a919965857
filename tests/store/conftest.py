from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evolve.store.rundir import RunDir

from . import postgres

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(
        tmp_path / "läufe mit raum" / "ein lauf",
        name="ein lauf",
        config_text="name: ein lauf\n",
        identity={"search": {"trials": 100}},
        parents={},
    )


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """A storage of each kind, empty; PostgreSQL is a real server, or the test is skipped with the reason."""
    if request.param == "journal":
        return None
    if request.param == "sqlite":
        return f"sqlite:///{run.path}/eine studie.db"
    try:
        found, _ = postgres.new_database()
    except postgres.Unavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("EVOLVE_TEST_PG", postgres.PASSWORD)
    return found
