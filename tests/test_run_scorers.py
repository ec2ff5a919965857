"""A search without any task: bits per byte of a text, size, and a function of the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from evolve.config.load import load
from evolve.run import run
from evolve.types import Scored
from tests.driving import left
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
def score(model):
    return {"norms": {name: float(model.tensor(name).norm()) for name in model.shapes if "norm" in name}}
"""


def test_a_search_by_scorers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_search(tmp_path, **{"search.trials": 3, "score.holdout.items": 6})
    (tmp_path / "text.txt").write_text("".join(f"the hen and line {n} of the text\n" for n in range(40)))
    (tmp_path / "scores.py").write_text(CODE)
    data = yaml.safe_load(path.read_text())
    del data["score"]["tasks"]
    data["score"]["scorers"] = [
        {"bits_per_byte": {"path": "text.txt", "chunk_bytes": 80}},
        {"size": {"weight": 0.1}},
        {"python": {"function": "scores.py:score", "metric": "norms", "weight": 0}},
    ]
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    folder = run(load(path), runs=tmp_path / "runs")
    found = left(tmp_path / "runs" / "small")
    assert [trial[1] for trial in found.trials].count("complete") == 3
    outcomes = [record.outcome for record in folder.records()]
    assert all(isinstance(outcome, Scored) for outcome in outcomes)
    for outcome in outcomes:
        assert isinstance(outcome, Scored)
        assert set(outcome.tasks) == {"bits_per_byte", "size", "python"}
        text, size = outcome.tasks["bits_per_byte"], outcome.tasks["size"]
        assert outcome.value == pytest.approx(-(text.value + 0.1 * size.value) / 1.1)
    assert any(key.endswith("-holdout") for key in found.outcomes)
