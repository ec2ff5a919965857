"""The search spaces of distillation: they fit their data, run, and what their comments offer can be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
SMALL = ("score.backend=hf", "score.holdout.items=20", "engine=inline")
DEMO: dict[str, tuple[str, ...]] = {
    "distill_whitebox": (*(f"score.tasks.{place}.items=20" for place in range(3)),),
    "distill_onpolicy": ("score.tasks.0.items=20", "pipeline.0.distill.generation.max_new_tokens=4"),
    "distill_size": ("score.tasks.0.items=20", "score.scorers.0.kl_to_teacher.items=10"),
    "draft_model": (
        "score.scorers.0.speculative.items=6",
        "score.holdout.items=6",
        "pipeline.1.distill.generation.max_new_tokens=4",
    ),
    "merge_then_distill": (*(f"score.tasks.{place}.items=20" for place in range(3)),),
}
"""Spaces on the demo's models to what makes their runs small."""
script, demo = load_script("demo_reasons"), load_script("demo_models")


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


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo's texts and tasks, and tiny models in place of its own."""
    folder = tmp_path_factory.mktemp("fields")
    world = demo.World(0)
    for seed, name in enumerate(("base", *demo.FIELDS)):
        make_model(folder / f"models/demo/{name}", seed=seed, layers=4)
    demo.save_tasks(world, folder / "models/demo/tasks")
    demo.save_texts(world, folder / "models/demo/texts", 0)
    return folder


def opened(case: str, home: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Loaded:
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return load(SPACES / f"{case}.yaml", [*SMALL, *overrides])


@pytest.mark.parametrize("case", CASES)
def test_a_space_fits_its_data(case: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(opened(case, home, monkeypatch, "score.tasks.0.items=20")).parents.keys() == {"base"}


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
    searched(case, home, "score.tasks.0.items=20")


@pytest.mark.slow
@pytest.mark.parametrize("case", DEMO)
def test_a_space_of_the_demo_runs(case: str, fields: Path) -> None:
    stages = yaml.safe_load((SPACES / f"{case}.yaml").read_text())["pipeline"]
    [place] = [place for place, stage in enumerate(stages) if "distill" in stage]
    found = searched(case, fields, *DEMO[case], f"pipeline.{place}.distill.dataset.max_tokens=800")
    best = found["best"]
    assert best["holdout"] and found["trials"] == 2
    if case == "distill_size":
        # Score against size, with a front among the candidates.
        assert found["trade"]["tasks"] == {
            "gain": {"demo_towns": "acc"},
            "retention": {"size": "billion_parameters"},
        }
        assert any(point["front"] for point in found["trade"]["points"])


def searched(case: str, home: Path, *overrides: str) -> dict[str, Any]:
    """Search for two trials in a process of its own, and return the report."""
    command = [sys.executable, "-m", "evolve.cli", "run", str(SPACES / f"{case}.yaml"), *SMALL, *overrides]
    command += ["search.trials=2", "search.population=2", "--display", "none"]
    done = subprocess.run(
        command,
        cwd=home,
        env={**os.environ, "XDG_CACHE_HOME": str(home / f"cache-{case}")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stages = home / f"cache-{case}/evolve/stages"
    kept = [path for path in stages.iterdir() if (path / "training.json").exists()]
    assert kept
    log = json.loads((kept[0] / "training.json").read_text())
    assert log["stage"] == "distill" and log["tokens"] > 0
    report: dict[str, Any] = json.loads((home / "runs" / case / "report.json").read_text())
    return report
