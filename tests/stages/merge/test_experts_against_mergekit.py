"""Experts, which mergekit 0.1.5 merges and writes as one tensor for all of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.stages.merge import MergeStage
from evolve.weights.reader import open_model
from tests.architectures import make
from tests.stages.merge import mergekit
from tests.stages.merge.memory import block

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

LAYER = "model.layers.0"
EXPERTS = 4


def merged(method: str, parameters: dict[str, Any], folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    paths = {name: make(folder / name, "mixtral", seed=seed) for seed, name in enumerate(("base", "one"))}
    models = {name: open_model(path) for name, path in paths.items()}
    entry = {"model": str(paths["one"]), "parameters": parameters}
    config = {"merge_method": method, "base_model": str(paths["base"]), "models": [entry], "dtype": "float32"}
    mergekit.run([{"config": config, "out": str(folder / "out")}], folder)
    ours = MergeStage.run(block(method, {"one": parameters}, base_model="base"), models, seed=0)
    return ours, mergekit.read(folder / "out")


def ours_as_one(ours: Any) -> dict[str, torch.Tensor]:
    parts = {
        name: [
            ours.tensor(f"{LAYER}.block_sparse_moe.experts.{number}.{name}.weight")
            for number in range(EXPERTS)
        ]
        for name in ("w1", "w2", "w3")
    }
    gates = [torch.cat(pair) for pair in zip(parts["w1"], parts["w3"], strict=True)]
    return {"gate_up_proj": torch.stack(gates), "down_proj": torch.stack(parts["w2"])}


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    reason = mergekit.make_environment()
    if reason:
        pytest.skip(f"no mergekit environment: {reason}")


def test_place_by_place_both_are_the_same(tmp_path: Path) -> None:
    ours, theirs = merged("task_arithmetic", {"weight": 0.7}, tmp_path)
    for name, tensor in ours_as_one(ours).items():
        torch.testing.assert_close(tensor, theirs[f"{LAYER}.mlp.experts.{name}"], rtol=1e-6, atol=1e-7)


def test_what_looks_at_a_whole_tensor_differs(tmp_path: Path) -> None:
    ours, theirs = merged("ties", {"weight": 1.0, "density": 0.5}, tmp_path)
    base = open_model(tmp_path / "base")
    before = ours_as_one(base)
    for name, tensor in ours_as_one(ours).items():
        counts = [
            [int((model[number] != before[name][number]).sum()) for number in range(EXPERTS)]
            for model in (tensor, theirs[f"{LAYER}.mlp.experts.{name}"])
        ]
        half = tensor[0].numel() // 2
        assert counts[0] == [half] * EXPERTS
        assert sum(counts[1]) == half * EXPERTS
        assert counts[1] != counts[0]
