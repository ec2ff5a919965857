"""Layers that are stacked twice, in the hf engine: one storage, and what a plain model of that depth says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from evolve.score.engines.hf import open_engine
from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.score.engines.oracle import Oracle, agree, config, generated, make, scores

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from evolve.weights.model import Model


def stack(parents: dict[str, Model], slices: list[tuple[str, int, int, float]]) -> Model:
    entries = [
        {"sources": [{"model": model, "layer_range": [first, end]}], "scale": scale}
        for model, first, end, scale in slices
    ]
    block = MergeBlock.model_validate({"merge_method": "passthrough", "slices": entries})
    return MergeStage.run(block, parents, seed=0)


def on_disk(model: Model, folder: Path) -> Oracle:
    write_model(model, folder)
    return Oracle(open_model(folder))


def bytes_held(engine: Any) -> int:
    state = engine.lm.model.state_dict().values()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state}
    return sum(storages.values())


@pytest.mark.parametrize(
    ("arch", "tied"),
    [
        ("llama", True),
        pytest.param("gpt2", True, marks=pytest.mark.slow),
        pytest.param("gpt_neox", False, marks=pytest.mark.slow),
    ],
)
def test_stacks_of_changing_depth(tmp_path: Path, arch: str, tied: bool) -> None:
    parents = {name: make(tmp_path, arch, tied=tied, seed=seed, layers=3) for seed, name in enumerate("ab")}
    candidates = [
        stack(parents, [("a", 0, 3, 1), ("b", 1, 2, 1), ("a", 1, 3, 1), ("b", 1, 2, 1)]),
        # As deep, but other layers are equal.
        stack(parents, [("a", 0, 2, 1), ("a", 0, 2, 1), ("b", 0, 3, 1)]),
        stack(parents, [("b", 0, 1, 1), ("a", 1, 3, 0.7)]),
        stack(parents, [("a", 0, 3, 1), ("a", 1, 3, 0.7), ("a", 1, 3, 1)]),
    ]
    engine = open_engine(config(), parents["a"], 1)
    for number, model in enumerate(candidates):
        oracle = on_disk(model, tmp_path / f"{number}")
        engine.load(model)
        agree(scores(engine.lm), oracle.scores)
        assert generated(engine.lm) == oracle.generated
    engine.load(parents["b"])
    agree(scores(engine.lm), Oracle(parents["b"]).scores)


def test_a_repeated_layer_is_kept_and_computed_once(tmp_path: Path) -> None:
    parents = {name: make(tmp_path, "llama", tied=True, seed=seed) for seed, name in enumerate("ab")}
    once = stack(parents, [("a", 0, 2, 1), ("b", 0, 2, 1)])
    often = stack(parents, [("a", 0, 2, 1), ("b", 0, 2, 1)] * 3)
    read: list[str] = []

    def counted(name: str) -> torch.Tensor:
        read.append(name)
        return often.tensor(name)

    engine = open_engine(config(), once, 1)
    size = bytes_held(engine)
    engine.load(replace(often, tensor=counted))
    assert engine.lm.model.config.num_hidden_layers == 12
    assert bytes_held(engine) == size
    assert len(read) == len(set(read)) == len(once.specs)
    scaled = stack(parents, [("a", 0, 2, 1), ("b", 0, 2, 1), ("a", 0, 2, 0.5)])
    engine.load(scaled)
    # The third slice has o_proj and down_proj of its own, and shares all else.
    layer = sum(t.numel() for n, t in parents["a"].tensors() if ".0." in n and ("o_proj" in n or "down" in n))
    assert bytes_held(engine) == size + 2 * 4 * layer


def test_a_swap_keeps_what_is_shared(tmp_path: Path) -> None:
    parents = {name: make(tmp_path, "llama", tied=True, seed=seed) for seed, name in enumerate("abc")}
    slices = [("a", 0, 2, 1.0), ("b", 0, 1, 1.0), ("a", 0, 2, 1.0)]
    first = stack(parents, slices)
    second = stack({"a": parents["c"], "b": parents["b"]}, slices)
    engine = open_engine(config(), first, 1)
    lm, size = engine.lm, bytes_held(engine)
    engine.load(second)
    assert engine.lm is lm
    assert bytes_held(engine) == size
    agree(scores(engine.lm), on_disk(second, tmp_path / "second").scores)
