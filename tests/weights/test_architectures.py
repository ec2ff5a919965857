"""Every architecture, all the way: opened, checked, merged, written, and loaded by transformers.

The oracle is transformers itself: the average of two models' parameters in its memory, where experts are
fused and old names are new ones, must compute what our average of their files computes.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.registry import STAGES
from evolve.stages.pipeline import build, check
from evolve.types import Recipe
from evolve.weights.compat import differences
from evolve.weights.model import TensorSpec
from evolve.weights.reader import open_model
from evolve.weights.skeleton import unexplained
from evolve.weights.writer import write_model
from tests.architectures import ARCHITECTURES, logits, make

NAMES = list(ARCHITECTURES)
TIED = {"llama_tied", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "mamba"}
FUSED = {"mixtral", "qwen3_moe"}
QUICK = {"gpt2", "gpt_neox", "qwen3_moe"}
TENSOR_BY_TENSOR = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made: dict[tuple[str, int], object] = {}

    def folder(name, seed=0):
        if (name, seed) not in made:
            made[name, seed] = make(tmp_path_factory.mktemp(f"{name}{seed}"), name, seed=seed)
        return made[name, seed]

    return folder


def linear(models):
    block = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1.0}} for name in models],
    }
    stage = STAGES.load("merge").block.model_validate(block)
    assert check([("merge", stage)], models) == []
    return build(Recipe.make(dict.fromkeys(models, "sha256:x"), [{"merge": block}]), models)


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_with_itself_computes_the_same(name, folders, tmp_path):
    folder = folders(name)
    models = {"a": open_model(folder), "b": open_model(folder)}
    assert models["a"].tied is (name in TIED)
    assert unexplained(models["a"]) == []
    assert differences(models) == []
    write_model(linear(models), tmp_path / "out", shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    again = open_model(tmp_path / "out")
    assert again.specs == models["a"].specs
    assert unexplained(again) == []
    assert torch.equal(logits(tmp_path / "out"), logits(folder))


@pytest.mark.parametrize("name", NAMES)
def test_an_average_computes_what_the_average_in_memory_computes(name, folders, tmp_path):
    from transformers import AutoModelForCausalLM

    one, two = (folders(name, seed) for seed in (0, 1))
    write_model(linear({"a": open_model(one), "b": open_model(two)}), tmp_path / "out")
    model, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (one, two))
    with torch.no_grad():
        for parameter, second in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_((parameter + second) / 2)
        wanted = model.eval()(torch.arange(16)[None] * 7 % 128).logits
    assert torch.equal(logits(tmp_path / "out"), wanted)
    assert not torch.allclose(wanted, logits(one), atol=1e-2)


@pytest.mark.parametrize("name", TENSOR_BY_TENSOR)
def test_each_tensor_is_missed_when_it_is_taken_away(name, folders):
    model = open_model(folders(name))
    for tensor in model.specs:
        fewer = {other: spec for other, spec in model.specs.items() if other != tensor}
        (message,) = unexplained(replace(model, specs=fewer))
        assert message.startswith("the weights lack ")
        assert tensor in message


@pytest.mark.parametrize("name", TENSOR_BY_TENSOR)
def test_each_tensor_is_named_when_it_has_another_shape(name, folders):
    model = open_model(folders(name))
    for tensor, spec in model.specs.items():
        wider = {**model.specs, tensor: TensorSpec((*spec.shape[:-1], spec.shape[-1] + 1), spec.dtype)}
        (message,) = unexplained(replace(model, specs=wider))
        assert message.startswith("config.json and weights disagree: ")
        assert f"{tensor} {list(wider[tensor].shape)} instead of {list(spec.shape)}" in message


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_too_many_is_named(name, folders):
    model = open_model(folders(name))
    more = {**model.specs, "model.layers.0.self_attn.q_proj.qweight": TensorSpec((4,), "int32")}
    (message,) = unexplained(replace(model, specs=more))
    assert "has no place for model.layers.0.self_attn.q_proj.qweight" in message


@pytest.mark.parametrize("name", sorted(FUSED))
def test_an_expert_too_many_is_named(name, folders):
    model = open_model(folders(name))
    tensors = [tensor for tensor in model.specs if ".experts.3." in tensor]
    extra = {tensor.replace(".experts.3.", ".experts.4."): model.specs[tensor] for tensor in tensors}
    (message,) = unexplained(replace(model, specs={**model.specs, **extra}))
    assert "has no place for " in message
    assert ".experts.4." in message


@pytest.mark.parametrize("name", sorted(FUSED))
def test_experts_that_are_fused_in_the_file_are_explained_too(name, folders, tmp_path):
    """As a checkpoint looks that was written from memory as it is."""
    from transformers import AutoModelForCausalLM

    source = folders(name)
    shutil.copytree(source, tmp_path / "fused")
    state = AutoModelForCausalLM.from_pretrained(source).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "fused/model.safetensors")
    model = open_model(tmp_path / "fused")
    assert set(model.specs) != set(open_model(source).specs)
    assert unexplained(model) == []
    write_model(linear({"a": model, "b": model}), tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in written.items())
    # Not to the bit: kernels of experts depend on where a tensor lies in memory.
    assert torch.allclose(logits(tmp_path / "out"), logits(source), atol=1e-5)
