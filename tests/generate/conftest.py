from __future__ import annotations

import pytest

from evolve.generate import asker, endpoint


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait hundredths of a second where a server says nothing about waiting."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(endpoint, "_LONGEST_WAIT", 0.05)
    monkeypatch.setattr(asker, "_LOOK_AGAIN", 0.02)
