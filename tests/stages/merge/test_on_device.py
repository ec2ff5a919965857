"""Merges of models that stay on a GPU. Where there is none, tensors without values stand for those there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.stages.merge import MergeStage
from evolve.tensors import selection
from evolve.tensors.devices import in_one_place
from evolve.tensors.fused import Magnitude
from evolve.weights.resident import resident
from tests.stages.merge.memory import NAMES, block, memory_model
from tests.stages.merge.test_methods import METHODS, RANDOM, call, load, some_inputs

if TYPE_CHECKING:
    from evolve.stages.merge.base import Inputs
    from evolve.stages.merge.block import MergeBlock
    from evolve.weights.model import Model

STORED = [name for name in METHODS if load(name).stored]
WITHOUT_STATISTICS = [name for name in METHODS if load(name).statistics is None]


def models(dtype: torch.dtype) -> dict[str, Model]:
    """Return a base and three others, in steps so coarse that magnitudes tie."""
    found = {}
    for seed, name in enumerate(("base", "one", "two", "three")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: (torch.randn((20, 30), generator=generator) * 16).round().div(16).to(dtype)
            for name in NAMES[:4]
        }
        found[name] = memory_model(tensors)
    return found


def recipe(name: str, **shared: Any) -> MergeBlock:
    method = load(name)
    others = ["one", "two", "three"][: method.models[1] or 3]
    own = {p.name: 0.4 for p in method.per_model if p.name != "epsilon"}
    keys: dict[str, Any] = {"parameters": {p.name: 0.4 for p in method.shared if p.default is None} | shared}
    if method.base == "required":
        keys["base_model"] = "base"
    made = block(name, dict.fromkeys(others, own), **keys)
    assert made.problems() == []
    return made


CASES = [(name, {}) for name in WITHOUT_STATISTICS] + [("model_stock", {"filter_wise": True})]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "shared"), CASES)
def test_models_on_a_gpu_give_the_bits_of_the_cpu(
    name: str, shared: dict[str, Any], dtype: torch.dtype
) -> None:
    given, made = models(dtype), recipe(name, **shared)
    moved = resident(given, torch.device("cuda"), 1 << 30)
    mixed = {**moved, "one": given["one"]}
    expected = MergeStage.run(made, given, seed=3)
    for some in (moved, mixed):
        result = MergeStage.run(made, some, seed=3)
        for tensor in NAMES[:4]:
            found = result.tensor(tensor)
            assert found.device.type == ("cuda" if load(name).stored else "cpu")
            assert torch.equal(found.cpu(), expected.tensor(tensor)), tensor


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_what_runs_on_the_cpu_is_not_sent_to_a_device(name: str) -> None:
    """The device has no values, so that a method which reads them there fails, and a result there shows."""
    given, made = models(torch.float32), recipe(name)
    moved = resident(given, torch.device("meta"), 1 << 30)
    if load(name).stored:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            MergeStage.run(made, moved, seed=3).tensor(NAMES[0])
        return
    result = MergeStage.run(made, moved, seed=3).tensor(NAMES[0])
    assert torch.equal(result, MergeStage.run(made, given, seed=3).tensor(NAMES[0]))


@pytest.mark.parametrize(("name", "shared"), [case for case in CASES if case[0] in STORED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_is_on_the_device_of_its_models(
    name: str, shared: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that is made on the CPU on the way is an error: tensors of two devices do not mix."""
    if name == "ties":  # its threshold is a number, and such tensors have none
        monkeypatch.setattr(selection, "largest_on_device", lambda *_: Magnitude(1, 1))
    arguments, _ = some_inputs(name, (20, 30))
    if name == "model_stock":
        monkeypatch.setattr("evolve.stages.merge.model_stock._ratio", lambda *_, **__: np.full(20, 0.5))
    if name in {*RANDOM, "ties"}:
        arguments["per_model"]["density"] = [0.5] * len(arguments["models"])
    there: dict[str, Any] = {"device": "meta", "dtype": dtype}
    arguments["models"] = [torch.empty((20, 30), **there) for _ in arguments["models"]]
    if arguments["base"] is not None:
        arguments["base"] = torch.empty((20, 30), **there)
    result = call(**arguments, **shared)
    assert result.device.type == "meta"
    assert result.shape == (20, 30)


def test_tensors_of_two_devices_meet_on_the_one_that_is_not_the_cpu() -> None:
    near, far = torch.ones(3), torch.ones(3, device="meta")
    assert [tensor.device.type for tensor in in_one_place([near, far, near])] == ["meta"] * 3
    assert in_one_place([near, near])[1] is near


def test_what_a_stage_made_meets_the_parents_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    given = models(torch.float32)
    moved = resident(given, torch.device("meta"), 1 << 30)
    seen = []

    def merge(inputs: Inputs) -> torch.Tensor:
        seen.extend(tensor.device.type for tensor in inputs.tensors)
        return torch.zeros(20, 30)

    monkeypatch.setattr(load("linear"), "merge", staticmethod(merge))
    MergeStage.run(recipe("linear"), {**moved, "two": given["two"]}, seed=3).tensor(NAMES[0])
    assert seen == ["meta"] * 3
