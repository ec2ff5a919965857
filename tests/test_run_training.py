"""A search over all stages, each switched by a gene: killed in the middle of a training, gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.driving import left
from tests.small import WORDS, make_search
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


def pipeline(folder: Path) -> list[dict[str, Any]]:
    training = {"per_device_train_batch_size": 4, "warmup_steps": 0}
    return [
        {
            "vocab": {
                "name": "wide",
                "model": "one",
                "enabled": {"choices": [False, True]},
                "dataset": str(folder / "text.jsonl"),
                "num_new_tokens": 4,
                "selection": {"min_frequency": 4},
                "pad_to_multiple_of": 16,
            }
        },
        {
            "cpt": {
                "name": "adapted",
                "model": "wide",
                "enabled": {"choices": [False, True]},
                "dataset": {"path": str(folder / "text.jsonl"), "max_bytes": 4000, "max_length": 32},
                "training_args": {**training, "learning_rate": {"choices": [1e-3, 3e-3]}},
            }
        },
        {
            "merge": {
                "name": "merged",
                "enabled": {"choices": [False, True]},
                "merge_method": "linear",
                "tokenizer": {"source": "union", "pad_to_multiple_of": 16},
                "models": [
                    {"model": "adapted", "parameters": {"weight": 1.0}},
                    {"model": "two", "parameters": {"weight": {"low": 0.0, "high": 2.0}}},
                ],
                "dtype": "float32",
            }
        },
        {
            "distill": {
                "model": "merged",
                "enabled": {"choices": [False, True]},
                "teacher": {"kind": "hf", "model": "two"},
                "dataset": {"path": str(folder / "text.jsonl"), "max_tokens": 800, "max_length": 32},
                "loss_functions": [{"function": "kl"}],
                "training_args": {**training, "learning_rate": 1e-3},
            }
        },
    ]


def make(folder: Path) -> Path:
    folder.mkdir()
    for number, name in enumerate(("base", "one", "two")):
        make_model(folder / name, seed=number, layers=1)
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(WORDS, k=8))}) for _ in range(200))
    (folder / "text.jsonl").write_text("\n".join(lines))
    config = make_search(folder)
    import yaml

    plain = yaml.safe_load(config.read_text())
    plain["models"] = {name: plain["models"][name] for name in ("one", "two")}
    plain["pipeline"] = pipeline(folder)
    plain["search"] = {"trials": 6, "population": 3, "seed": 3}
    config.write_text(yaml.safe_dump(plain, sort_keys=False))
    return config


def start(config: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "evolve.cli", "run", str(config), "--runs", str(home / "runs")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}
    with (home / "log").open("ab") as log:
        return subprocess.Popen([*command, "--display", "none"], stdout=log, stderr=log, env=environment)


def finish(config: Path, home: Path) -> None:
    assert start(config, home).wait(400) == 0, (home / "log").read_text()[-4000:]


def kinds(home: Path) -> set[str]:
    """Return the kinds of stages that occur among the candidates."""
    from evolve.store.rundir import RunDir

    records = RunDir.open(home / "runs" / "small").records()
    return {kind for record in records for entry in record.recipe.pipeline for kind in entry}


def made(home: Path) -> dict[str, int]:
    """Return what was trained to the end, with the time at which it was."""
    stages = home / "cache" / "evolve" / "stages"
    found = stages.iterdir() if stages.is_dir() else ()
    return {
        path.name: (path / "model.safetensors").stat().st_mtime_ns
        for path in found
        if path.is_dir() and path.suffix != ".work" and not path.name.startswith(".")
    }


def test_an_allowed_change_keeps_the_contents_of_data_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them a third start would see a difference, and nobody could make a recipe of the config."""
    from evolve import run as module
    from evolve.config.files import files
    from evolve.config.load import load

    for name in ("drive", "_prepare_stages"):
        monkeypatch.setattr(module, name, lambda prepared: None)
    config, runs = make(tmp_path / "search"), tmp_path / "runs"
    module.run(load(config, ("engine=inline",)), runs=runs)
    more = load(config, ("engine=inline", "search.trials=7"))
    folder = module.run(more, runs=runs, allow_config_change=True)
    kept = load(folder.path / "config.yaml")
    contents = [file.content for _, block in kept.stages for _, file in files(block)]
    assert len(contents) == 3 and all(content and content.startswith("sha256:") for content in contents)
    module.run(more, runs=runs)


@pytest.mark.slow
def test_killed_in_a_training_it_trains_nothing_twice(tmp_path: Path) -> None:
    config = make(tmp_path / "search")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(config, whole)
    reference = left(whole / "runs" / "small")
    assert len(made(whole)) >= 3
    assert kinds(whole) == {"vocab", "cpt", "merge", "distill"}
    kept: dict[str, int] = {}
    for kill in range(3):
        process = start(config, killed)
        work = killed / "cache" / "evolve" / "stages"
        until = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < until:
            if len(made(killed)) > kill and any(work.glob("*.work")):
                time.sleep(0.05 * kill)
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        process.wait()
        now = made(killed)
        assert kept.items() <= now.items()
        kept = now
    finish(config, killed)
    assert left(killed / "runs" / "small") == reference
    now = made(killed)
    assert kept.items() <= now.items()
    assert now.keys() == made(whole).keys()
