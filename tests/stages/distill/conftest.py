"""A student, a teacher, a stranger and a text; and a cache of one's own."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from tests.small import WORDS
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    make_model(folder / "student", seed=1, layers=1)
    make_model(folder / "teacher", seed=2, layers=2)
    make_model(folder / "other", seed=3, vocab=120)
    draw = random.Random(0)
    with (folder / "data.jsonl").open("w") as file:
        for _ in range(24):
            prompt, completion = (" ".join(draw.choices(WORDS, k=3)) for _ in range(2))
            file.write(json.dumps({"prompt": prompt, "completion": " " + completion}) + "\n")
    return folder
