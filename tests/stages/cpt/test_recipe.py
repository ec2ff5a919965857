"""A config with ranges in a stage cpt: genes, recipes, and what is built from them."""

from __future__ import annotations

import json
from dataclasses import replace
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


def test_sizes_of_texts_may_be_ranges(tmp_path: Path) -> None:
    """A gene gives the very block that the fixed number gives, so both share what they train."""
    text = str(tmp_path / "domain.jsonl")
    found = [("cpt.dataset.max_bytes", 600), ("cpt.replay.self_generated", 4)]
    found.append(("cpt.regularizers.ewc.samples", 5))
    plain = {"training_args": {"learning_rate": 1e-3}, "wise_ft": {"alpha": 1.0}, "enabled": True}

    def space_of(most: Any, written: Any, samples: Any) -> Any:
        changes = {
            "dataset": {"path": text, "max_length": 32, "max_bytes": most},
            "replay": {"self_generated": written, "share": 0.2},
            "regularizers": {"ewc": {"path": text, "weight": 1.0, "samples": samples}},
        }
        return derive(pinned(load(config(tmp_path, **changes, **plain))))

    space = space_of({"choices": [300, 600]}, {"low": 2, "high": 8, "step": 2}, {"low": 4, "high": 6})
    assert [gene.name for gene in space.genes] == [name for name, _ in found]
    contents = {"base": content_of(tmp_path / "base")}
    values = {
        gene.name: float(gene.choices.index(one)) for gene, (_, one) in zip(space.genes, found, strict=True)
    }
    made = space.recipe(values, contents)
    assert made.hash == space_of(600, 4, 5).recipe({}, contents).hash
    block = made.pipeline[0]["cpt"]
    sizes = block["dataset"]["max_bytes"], block["replay"]["self_generated"]
    assert [type(one) for one in (*sizes, block["regularizers"]["ewc"]["samples"])] == [int, int, int]
    base = replace(open_model(tmp_path / "base"), content=contents["base"])
    built = build(made, {"base": base})
    assert not torch.equal(built.tensor("model.norm.weight"), base.tensor("model.norm.weight"))


def test_what_a_fixed_number_means_for_the_key_of_a_training(tmp_path: Path) -> None:
    """Written down from before these could be ranges: trainings that are kept must still be found."""
    from evolve.stages.cpt.block import CptBlock
    from evolve.stages.kept import stage_key

    content = f"sha256:{7:064x}"
    block = CptBlock.model_validate(
        {
            "model": "base",
            "dataset": {"path": "a", "content": content, "max_bytes": 4000, "max_length": 64},
            "replay": {"self_generated": 20, "share": 0.25},
            "regularizers": {"ewc": {"path": "a", "content": content, "weight": 2.0, "samples": 16}},
        }
    )
    config(tmp_path)
    start = replace(open_model(tmp_path / "base"), content=content)
    plain = CptBlock.effective(block.model_dump(mode="json", exclude_none=True))
    if torch.cuda.is_available():
        pytest.skip("the kind of device is in the key")
    assert stage_key("cpt", 2, plain, {"base": start}, 3) == "d480f1b63d9d4f08"
