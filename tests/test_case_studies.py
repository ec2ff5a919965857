"""The search spaces of the case studies: they fit their data, and what their comments offer can be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from evolve.config.load import load, load_text
from evolve.validation import check
from tests.scripts.loading import load_script
from tests.tiny import make_model

if TYPE_CHECKING:
    from evolve.config.load import Loaded

SPACES = Path(__file__).resolve().parents[1] / "search_spaces"
CASES = ("distill_reasoning", "distill_orca", "distill_phi", "distill_r1")
script = load_script("demo_reasons")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny student and little data, where the spaces expect them."""
    folder = tmp_path_factory.mktemp("cases")
    make_model(folder / "models/demo/base", layers=1)
    trained, asked = script.split(0)
    texts = folder / "models/demo_reasons/texts"
    for name in ("sums", "few", "weak", "verified", "exercises"):
        script.write_lines(texts / f"{name}.jsonl", map(script.row, trained[:40]))
    script.write_lines(texts / "textbook.jsonl", ({"text": script.line(one)} for one in trained[:40]))
    script.save_task(asked[:120], folder / "models/demo_reasons/tasks")
    return folder


def opened(case: str, home: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Loaded:
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    small = ("score.backend=hf", "score.tasks.0.items=20", "score.holdout.items=20", "engine=inline")
    return load(SPACES / f"{case}.yaml", [*small, *overrides])


@pytest.mark.parametrize("case", CASES)
def test_a_space_fits_its_data(case: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(opened(case, home, monkeypatch)).parents.keys() == {"base"}


@pytest.mark.parametrize("case", [case for case in CASES if case != "distill_reasoning"])
def test_what_a_comment_offers_for_real_use_is_a_config(case: str) -> None:
    text = (SPACES / f"{case}.yaml").read_text()
    plain = yaml.safe_load(text)
    offered = "\n".join(line[4:] for line in text.splitlines() if line.startswith("#   "))
    offered = offered[offered.index("teacher:") :]
    for stage in plain["pipeline"]:
        del stage["distill"]["dataset"]
        stage["distill"] |= yaml.safe_load(offered)
    loaded = load_text(yaml.safe_dump(plain), "real.yaml")
    assert len(loaded.stages) == len(plain["pipeline"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_space_runs(case: str, home: Path) -> None:
    small = ["score.backend=hf", "score.tasks.0.items=20", "score.holdout.items=20", "engine=inline"]
    small += ["search.trials=2", "search.population=2"]
    command = [sys.executable, "-m", "evolve.cli", "run", str(SPACES / f"{case}.yaml"), *small]
    done = subprocess.run(
        [*command, "--display", "none"],
        cwd=home,
        env={**os.environ, "XDG_CACHE_HOME": str(home / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = [path for path in (home / "cache/evolve/stages").iterdir() if (path / "training.json").exists()]
    assert kept
    log = json.loads((kept[0] / "training.json").read_text())
    assert log["stage"] == "distill" and log["tokens"] > 0
