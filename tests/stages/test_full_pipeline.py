"""The shipped space with all stages, on tiny models: each candidate is built and scored, and it ends."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.config.load import load
from evolve.run import run
from evolve.space.space import derive
from evolve.stages.pipeline import check
from evolve.types import Scored
from evolve.weights.reader import open_model
from tests.small import WORDS, make_task
from tests.tiny import make_model

SPACE = Path(__file__).parents[2] / "search_spaces" / "full_pipeline.yaml"
SWITCHES = ("merged.enabled", "extended.enabled", "adapted.enabled", "distill.enabled")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tiny_space(folder: Path) -> Path:
    """Write the shipped space with other models, texts, tasks and sizes; its stages and ranges stay."""
    data: dict[str, Any] = yaml.safe_load(SPACE.read_text())
    for seed, name in enumerate(data["models"]):
        data["models"][name] = str(make_model(folder / name, seed=seed))
    draw = random.Random(0)
    text = folder / "text.jsonl"
    more = (*WORDS, "zebra", "quagga", "river")
    lines = [{"text": " ".join(draw.choices(more, k=10))} for _ in range(60)]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    vocab, cpt, distill = (next(iter(data["pipeline"][place].values())) for place in (1, 2, 3))
    vocab["dataset"]["path"] = str(text)
    vocab |= {"num_new_tokens": {"choices": [4, 8]}, "pad_to_multiple_of": 16}
    vocab["selection"] = {"min_frequency": 4}
    cpt["dataset"] |= {"path": str(text), "max_bytes": 1500}
    cpt["replay"]["self_generated"] = 8
    distill["dataset"] |= {"path": str(text), "max_tokens": 400}
    task = make_task(folder / "tasks")
    data["score"] |= {
        "include_path": str(task),
        "tasks": [{"task": "tiny_choice", "metric": "acc", "items": 12}],
        "scorers": [],
        "holdout": {"items": 0},
    }
    data["search"] |= {"trials": 5, "population": 4}
    data["engine"] = "inline"
    path = folder / "full.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_every_combination_of_switches_is_a_recipe_that_fits(tmp_path: Path) -> None:
    from evolve.config.files import pinned

    loaded = pinned(load(tiny_space(tmp_path)))
    models = {name: open_model(folder) for name, folder in loaded.config.models.items()}
    assert check(loaded.stages, models) == []
    space = derive(loaded)
    contents = {name: f"sha256:{number:064x}" for number, name in enumerate(models)}
    assert set(SWITCHES) <= {gene.name for gene in space.genes}
    stages = set()
    for number in range(16):
        on = {name: float(number >> place & 1) for place, name in enumerate(SWITCHES)}
        recipe = space.recipe({**space.centre(), **on}, contents)
        stages.add(tuple(kind for entry in recipe.pipeline for kind in entry))
        blocks = {kind: block for entry in recipe.pipeline for kind, block in entry.items()}
        if "cpt" in blocks:
            trained = [phase.get("train", "all") for phase in blocks["cpt"]["phases"]]
            assert ("new_embeddings" in trained) == ("vocab" in blocks)
    assert len(stages) == 16


@pytest.mark.slow
def test_a_search_over_it_ends(tmp_path: Path) -> None:
    folder = run(load(tiny_space(tmp_path)), runs=tmp_path / "runs")
    outcomes = [record.outcome for record in folder.records()]
    assert len(outcomes) >= 5
    assert [outcome for outcome in outcomes if not isinstance(outcome, Scored)] == []
    kinds = {kind for record in folder.records() for entry in record.job.recipe.pipeline for kind in entry}
    assert kinds == {"merge", "vocab", "cpt", "distill"}
