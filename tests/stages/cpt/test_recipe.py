"""A config with ranges in a stage cpt: genes, recipes, and what is built from them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from evolve.config.files import pinned
from evolve.config.load import load
from evolve.errors import ConfigError
from evolve.space.space import derive
from evolve.stages.pipeline import build, check, trained
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


def config(folder: Path, **changes: Any) -> Path:
    make_model(folder / "base")
    text = folder / "domain.jsonl"
    text.write_text("".join(json.dumps({"text": f"the hen {n} and one red ant"}) + "\n" for n in range(40)))
    block = {
        "model": "base",
        "enabled": {"choices": [False, True]},
        "dataset": {"path": str(text), "max_length": 32},
        "replay": {"path": str(text), "share": {"low": 0.0, "high": 0.5}},
        "regularizers": {"l2sp": {"weight": {"low": 0.0, "high": 1.0}}},
        "wise_ft": {"alpha": {"low": 0.0, "high": 1.0}},
        "training_args": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        **changes,
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({"models": {"base": str(folder / "base")}, "pipeline": [{"cpt": block}]}))
    return path


def test_from_a_config_to_a_model(tmp_path: Path) -> None:
    loaded = pinned(load(config(tmp_path)))
    base = open_model(tmp_path / "base")
    assert check(loaded.stages, {"base": base}) == []
    space = derive(loaded)
    assert [gene.name for gene in space.genes] == [
        "cpt.enabled",
        "cpt.replay.share",
        "cpt.regularizers.l2sp.weight",
        "cpt.wise_ft.alpha",
        "cpt.training_args.learning_rate",
    ]
    contents = {"base": content_of(tmp_path / "base")}

    def recipe(**values: float) -> Any:
        named = {gene.name: values.get(gene.name.rsplit(".", 2)[-2], 0.0) for gene in space.genes}
        named |= {"cpt.enabled": values.get("on", 1.0), "cpt.training_args.learning_rate": 1e-3}
        return space.recipe(named, contents)

    off, plain, half = recipe(on=0.0), recipe(wise_ft=1.0), recipe(wise_ft=0.5, l2sp=0.3, replay=0.2)
    assert len({off.hash, plain.hash, half.hash}) == 3
    assert off.pipeline == []
    assert plain.pipeline[0]["cpt"].keys() == {"model", "dataset", "training_args", "seed"}
    assert (trained(off), trained(plain)) == (0, 1)
    parents = {"base": base}
    built = build(half, parents, folder=tmp_path)
    assert not torch.equal(built.tensor("model.norm.weight"), base.tensor("model.norm.weight"))
    start = build(recipe(wise_ft=0.0), parents, folder=tmp_path)
    assert torch.equal(start.tensor("model.norm.weight"), base.tensor("model.norm.weight"))


def test_errors_have_a_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"space\.yaml:\d+:\d+.*replay needs one of"):
        load(config(tmp_path, replay={"share": 0.1}))
    with pytest.raises(ConfigError, match=r"unknown key.*learning_rat"):
        load(config(tmp_path, training_args={"learning_rat": 0.1}))
