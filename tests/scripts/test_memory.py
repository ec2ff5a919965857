"""The benchmark of memory, on parents that fit into any machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.scripts.loading import ROOT


@pytest.mark.slow
def test_it_measures_and_cleans_up(tmp_path):
    figures, room = tmp_path / "figures.json", tmp_path / "room"
    command = [sys.executable, ROOT / "scripts/bench/memory.py", "--gb", "0.3", "--limit", "1.5"]
    command += ["--methods", "linear", "--folder", room, "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    rows = {row["figure"]: row["ours"] for row in found["rows"]}
    assert rows["each parent, GB"] > 0.3
    # The model of one layer is a third as large: what grew with the model would show.
    assert rows["linear: peak of anonymous memory, GB"] > 0.1
    assert (
        rows["linear: peak of anonymous memory, GB"]
        < rows["linear: the same for a model of one layer, GB"] + 0.1
    )
    assert list(room.iterdir()) == []
