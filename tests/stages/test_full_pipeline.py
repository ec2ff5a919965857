"""Shipped spaces that train or extend, on tiny models: each candidate is built and scored, and it ends."""

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

SPACES = Path(__file__).parents[2] / "search_spaces"
SWITCHES = ("merged.enabled", "extended.enabled", "adapted.enabled", "distill.enabled")
KINDS = {
    "full_pipeline": {"merge", "vocab", "cpt", "distill"},
    "domain_adapt": {"cpt"},
    "vocab_extend": {"vocab"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tiny_space(folder: Path, name: str = "full_pipeline") -> Path:
    """Write a shipped space with other models, texts, tasks and sizes; its stages and ranges stay."""
    data: dict[str, Any] = yaml.safe_load((SPACES / f"{name}.yaml").read_text())
    for seed, model in enumerate(data["models"]):
        data["models"][model] = str(make_model(folder / model, seed=seed))
    draw = random.Random(0)
    text = folder / "text.jsonl"
    more = (*WORDS, "zebra", "quagga", "river")
    lines = [{"text": " ".join(draw.choices(more, k=10))} for _ in range(60)]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for entry in data["pipeline"]:
        ((kind, block),) = entry.items()
        if "dataset" in block:
            block["dataset"]["path"] = str(text)
        if kind == "vocab":
            block |= {"num_new_tokens": {"choices": [2, 4]}, "pad_to_multiple_of": 16}
            block["selection"]["min_frequency"] = 4
            del block["selection"]["contrast"]  # one text alone would be held against itself
        if kind == "cpt":
            block["dataset"]["max_bytes"] = 1500
            block["replay"]["self_generated"] = 8
        if kind == "distill":
            block["dataset"]["max_tokens"] = 400
    _score(data["score"], folder, text)
    data["search"] |= {"trials": 5, "population": 4}
    data["engine"] = "inline"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def _score(score: dict[str, Any], folder: Path, text: Path) -> None:
    """Shrink a block ``score``; roles, weights and what is asked of the holdout stay."""
    for task in score["tasks"]:
        make_task(folder / "tasks", name=task["task"])
        task["items"] = 12
    for entry in score.get("scorers", ()):
        entry["bits_per_byte"] |= {"path": str(text), "items": 12}
    score["backend"] = "hf"
    score["include_path"] = str(folder / "tasks")
    score["holdout"] |= {"items": 10, "seeds": 1, "top": 2}


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
@pytest.mark.parametrize("name", KINDS)
def test_a_search_over_it_ends(tmp_path: Path, name: str) -> None:
    from evolve.cli.options import load_run_config
    from evolve.report.collect import collect
    from evolve.report.summary import summarise

    folder = run(load(tiny_space(tmp_path, name)), runs=tmp_path / "runs")
    outcomes = [record.outcome for record in folder.records()]
    assert len(outcomes) >= 5
    assert [outcome for outcome in outcomes if not isinstance(outcome, Scored)] == []
    kinds = {kind for record in folder.records() for entry in record.job.recipe.pipeline for kind in entry}
    assert kinds == KINDS[name]
    found = summarise(collect(folder, load_run_config(folder)), "x")
    assert found.trade is not None and found.trade.start == "base", "roles are set"
    assert found.best_recipe is not None
    stages = [kind for entry in found.best_recipe.pipeline for kind in entry]
    assert bool(found.variants.stages) == (name == "full_pipeline" and len(stages) > 1)
    assert (found.variants.alone is not None) == ("vocab" in stages)
