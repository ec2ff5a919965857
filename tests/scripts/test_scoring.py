"""The benchmark of scoring runs, and writes what every benchmark writes. No time is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_model

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "scoring.py"


@pytest.mark.slow
def test_it_runs_on_a_tiny_model_and_both_sides_agree(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--model", str(tmp_path / "model"), "--backend", "hf"]
    command += ["--items", "6", "--texts", "3", "--new-tokens", "4", "--rounds", "1", "--json", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(out.read_text())
    assert {"machine", "versions", "rows"} <= written.keys()
    assert all(row.keys() == {"figure", "ours", "peer", "limit", "ratio"} for row in written["rows"])
    figures = {row["figure"]: row for row in written["rows"]}
    for kind in ("choices", "generation"):
        assert written[kind]["scores"]["ours"] == pytest.approx(written[kind]["scores"]["peer"])
        assert figures[f"{kind}: one candidate, CPU seconds"]["limit"] > 0
    assert figures["choices: tokens computed"]["ours"] < figures["choices: tokens of whole prompts"]["ours"]
