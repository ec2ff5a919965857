from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from evolve.statistics.corpus import Corpus
from evolve.weights.content import file_content

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of some 1,500 tokens for the tiny tokenizer."""
    path = tmp_path / "text.jsonl"
    lines = [
        {"text": f"the hen {i} and ten red ants ate at the sea, {i * i} nets of ore", "id": i}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def corpus(text: Path) -> Corpus:
    return Corpus(str(text), file_content(text), max_tokens=600, sequence_length=50)
