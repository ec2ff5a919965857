"""The storages that a searcher has to work with, shared with the tests of the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.conftest import run, url

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run", "url"]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a killed process wrote is there, on the disk or not; waiting would take most of the time."""
    import sqlalchemy

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def relax(connection: Any, record: object) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)
