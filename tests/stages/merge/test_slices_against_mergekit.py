"""Where slices of ours and of mergekit 0.1.5 meet, and where they differ on purpose."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.stages.merge.layers import before_layers, depths, layer_of, stacks
from evolve.weights.reader import open_model
from tests.stages.merge import mergekit
from tests.stages.merge.memory import memory_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def environment() -> None:
    reason = mergekit.make_environment()
    if reason:
        pytest.skip(f"no mergekit environment: {reason}")


BEFORE = {
    "model.embed_tokens.weight": True,
    "wte.weight": True,
    "transformer.wpe.weight": True,
    "gpt_neox.embed_in.weight": True,
    "transformer.word_embeddings_layernorm.bias": True,
    "model.tok_embeddings.weight": True,
    "backbone.embeddings.weight": True,
    "model.decoder.embed_positions.weight": True,
    "model.norm.weight": False,
    "transformer.ln_f.bias": False,
    "lm_head.weight": False,
    "embed_out.weight": False,
    "gpt_neox.final_layer_norm.weight": False,
    "backbone.norm_f.weight": False,
    "model.embedding_norm.weight": False,
}


@pytest.mark.parametrize(("name", "before"), BEFORE.items())
def test_what_stands_before_the_layers(name: str, before: bool) -> None:
    assert before_layers(name) == before
    assert layer_of(name) is None


@pytest.mark.slow
def test_before_and_after_as_in_mergekit_s_architectures(environment: None) -> None:
    """All its architectures with one stack of layers, but for LFM2, whose last norm it has before them."""
    checked = 0
    for file in sorted((mergekit.PYTHON.parents[1] / "lib").glob("*/*/mergekit/_data/architectures/*.json")):
        data = json.loads(file.read_text())
        if data.get("kind") == "modular":
            continue
        for key, before in (("pre_weights", True), ("post_weights", False)):
            for weight in data[key]:
                if "layers." in weight["name"] or weight["name"] == "model.embedding_norm.weight":
                    continue  # phi-1 counts its embedding as a layer
                assert before_layers(weight["name"]) == before, (file.name, weight["name"])
                checked += 1
    assert checked > 100


def test_several_stacks_have_depths_of_their_own() -> None:
    names = (
        [f"vision.blocks.{i}.w" for i in range(5)] + [f"model.layers.{i}.w" for i in range(3)] + ["norm.w"]
    )
    model = memory_model({name: torch.ones(1) for name in names})
    assert stacks(model) == {"vision.blocks": 5, "model.layers": 3}
    at = depths(model)
    assert [at(name) for name in names] == [0, 0.25, 0.5, 0.75, 1, 0, 0.5, 1, 0]


def piece(paths: dict[str, Path], first: int, weights: dict[str, Any]) -> dict[str, Any]:
    sources = [
        {"model": str(paths[name]), "layer_range": [first, first + 1], "parameters": {"weight": weight}}
        for name, weight in weights.items()
    ]
    return {"sources": sources}


@pytest.mark.slow
def test_last_norm_and_head_have_all_models_of_the_last_slice(tmp_path: Path, environment: None) -> None:
    """In mergekit they have as many models as the first slice has; the others are dropped."""
    paths = {
        name: make_model(tmp_path / name, seed=seed, layers=2, tied=False) for seed, name in enumerate("ab")
    }
    models = {str(path): open_model(path) for path in paths.values()}
    pieces = [piece(paths, 0, {"a": 1}), piece(paths, 1, {"a": 1, "b": 1})]
    config = {"merge_method": "linear", "slices": pieces, "dtype": "float32"}
    mergekit.run([{"config": config, "out": str(tmp_path / "out")}], tmp_path)
    theirs = mergekit.read(tmp_path / "out")
    ours = MergeStage.run(MergeBlock.model_validate(config), models, seed=0)
    a, b = models.values()
    for name in ("model.norm.weight", "lm_head.weight"):
        mean = (a.tensor(name).double() + b.tensor(name).double()) / 2
        assert (ours.tensor(name).double() - mean).abs().max() <= 1e-7
        assert torch.equal(theirs[name], a.tensor(name))
    inner = "model.layers.1.mlp.up_proj.weight"
    assert (ours.tensor(inner) - theirs[inner]).abs().max() <= 1e-7


@pytest.mark.slow
def test_mergekit_leaves_the_kinds_of_layers_where_they_were(tmp_path: Path, environment: None) -> None:
    """In another order its layers get the masks of others; with another depth it fails at the end."""
    from tests.stages.merge.stacks import make_parent

    path = make_parent(tmp_path / "a", "gemma2", seed=0, layers=4)
    own = json.loads((path / "config.json").read_text())["layer_types"]
    assert own[0] != own[1]

    def config(*layers: int) -> dict[str, Any]:
        slices = [{"sources": [{"model": str(path), "layer_range": [i, i + 1]}]} for i in layers]
        return {"merge_method": "passthrough", "slices": slices, "dtype": "float32"}

    for order in ((1, 3, 0, 2), (1, 3, 0)):
        block = MergeBlock.model_validate(config(*order))
        ours = MergeStage.run(block, {str(path): open_model(path)}, seed=0)
        assert ours.config["layer_types"] == [own[i] for i in order]
    mergekit.run([{"config": config(1, 3, 0, 2), "out": str(tmp_path / "out")}], tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == own
    with pytest.raises(RuntimeError, match="number of `layer_types`"):
        mergekit.run([{"config": config(1, 3, 0), "out": str(tmp_path / "short")}], tmp_path)
