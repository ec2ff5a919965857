"""Oracles: peft's merge_and_unload, and the logits of the base with the adapter beside it.

The second decides where a head is tied to an embedding that an adapter changes: peft's merge changes both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.stages.pipeline import build
from evolve.types import Recipe
from evolve.weights.compat import differences
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from evolve.weights.skeleton import unexplained
from evolve.weights.writer import write_model
from tests.architectures import logits, make

pytest.importorskip("peft", reason="the oracle; it is in the extra dev")

from tests.weights.adapters import train

QV = ["q_proj", "v_proj"]
GPT = ["c_attn", "c_proj"]

# Bases whose weights peft merges into what its adapter computes.
VARIANTS = {
    "plain": ("llama", {"target_modules": QV}),
    "all, rank-stabilised": ("llama", {"target_modules": "all-linear", "use_rslora": True, "r": 4}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 3, "down_proj": 5},
            "alpha_pattern": {"q_proj": 32, r".*\.0\.mlp\.down_proj": 2},
        },
    ),
    "patterns, rank-stabilised": (
        "llama",
        {
            "target_modules": QV,
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"v_proj": 3},
            "use_rslora": True,
        },
    ),
    "DoRA": ("llama", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "DoRA, embedding, head": (
        "llama",
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True, "use_rslora": True},
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens"]}),
    "saved modules": (
        "llama",
        {"target_modules": QV, "modules_to_save": ["lm_head", "model.norm", "k_proj"]},
    ),
    "tokens": ("llama", {"target_modules": QV, "trainable_token_indices": [3, 5, 127]}),
    "tokens of the head": ("llama", {"target_modules": QV, "trainable_token_indices": {"lm_head": [3, 5]}}),
    "tokens of a tied head": ("llama_tied", {"target_modules": QV, "trainable_token_indices": [3, 5]}),
    "Conv1D": ("gpt2", {"target_modules": [*GPT, "c_fc"]}),
    "Conv1D, DoRA": ("gpt2", {"target_modules": GPT, "use_dora": True}),
    "biases of LoRA": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "all biases": ("gpt2", {"target_modules": GPT, "bias": "all"}),
    "bias in B": ("gpt2", {"target_modules": GPT, "lora_bias": True}),
    "renamed head": ("gpt_neox", {"target_modules": ["query_key_value", "lm_head"], "bias": "all"}),
    "fused projections": ("phi3", {"target_modules": "all-linear"}),
    "state space": ("mamba", {"target_modules": ["x_proj", "in_proj"]}),
    "router": ("mixtral", {"target_modules": ["q_proj", "gate"]}),
}

# Where peft's merge_and_unload of a tied model is another model than the one that was trained.
TIED = {
    "embedding": ("llama_tied", {"target_modules": ["q_proj", "embed_tokens"]}, False),
    "head": ("llama_tied", {"target_modules": ["q_proj", "lm_head"]}, False),
    "both": ("llama_tied", {"target_modules": ["embed_tokens", "lm_head"]}, False),
    "embedding, DoRA": ("llama_tied", {"target_modules": ["embed_tokens"], "use_dora": True}, False),
    "kept tied": (
        "llama_tied",
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        True,
    ),
    "saved embedding": ("llama_tied", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}, False),
    "saved head": ("llama_tied", {"target_modules": QV, "modules_to_save": ["lm_head"]}, False),
    "saved, kept tied": (
        "llama_tied",
        {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        True,
    ),
    "GPT-2's embedding": ("gpt2", {"target_modules": ["c_proj", "wte"]}, False),
    # The last module decides what the config says of fan_in_fan_out: wrong for c_proj, which is square.
    "GPT-2's head": ("gpt2", {"target_modules": ["c_proj", "lm_head"]}, False),
}


def peft_name(name, merged):
    return name if name in merged else name.replace("embed_out", "lm_head").replace("block_sparse_moe", "mlp")


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_peft_merges(variant, tmp_path):
    arch, settings = VARIANTS[variant]
    trained = train(tmp_path, arch, **settings)
    base, model = open_model(trained.base), open_model(trained.place)
    assert model.specs == base.specs
    assert model.config == base.config
    changed = []
    for name in model.specs:
        if ".experts." in name:  # single in the file, fused in memory, and not adapted
            assert torch.equal(model.tensor(name), base.tensor(name))
            continue
        got, want = model.tensor(name), trained.merged[peft_name(name, trained.merged)]
        assert got.dtype == torch.float32
        assert torch.allclose(got, want, rtol=0, atol=1e-6 * float(want.abs().max())), name
        if not torch.equal(got, base.tensor(name)):
            changed.append(name)
    assert changed
    assert unexplained(model) == []


@pytest.mark.parametrize(
    "variant", ["plain", "DoRA, embedding, head", "saved modules", "Conv1D, DoRA", "all biases"]
)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_in_half_precision_rounded_once(variant, dtype, tmp_path):
    """Ours is W + s B A, rounded once; peft rounds twice and stays within one unit in the last place."""
    arch, settings = VARIANTS[variant]
    trained = train(tmp_path, arch, dtype=dtype, **settings)
    model = open_model(trained.place)
    for name in model.specs:
        got, want = model.tensor(name), trained.merged[peft_name(name, trained.merged)]
        assert got.dtype == getattr(torch, dtype)
        assert torch.equal(got, model.unrounded(name).to(got.dtype))
        unit = torch.finfo(got.dtype).eps * want.abs().float() + 1e-7
        assert torch.all((got.float() - want.float()).abs() <= unit), name


@pytest.mark.parametrize("variant", TIED)
def test_a_tied_model_computes_what_was_trained(variant, tmp_path):
    arch, settings, tied = TIED[variant]
    trained = train(tmp_path, arch, **settings)
    model = open_model(trained.place)
    assert model.tied is tied
    assert unexplained(model) == []
    write_model(model, tmp_path / "out")
    got = logits(tmp_path / "out")
    assert torch.allclose(got, trained.live, atol=1e-6 * float(trained.live.abs().max()) + 1e-6)
    assert not torch.allclose(got, logits(trained.base), atol=1e-2)


def test_an_untied_parent_does_not_merge_with_a_tied_one(tmp_path):
    trained = train(tmp_path, "llama_tied", target_modules=["embed_tokens"])
    found = differences({"base": open_model(trained.base), "math": open_model(trained.place)})
    assert len(found) == 1
    assert "tie_word_embeddings" in found[0]


def test_several_adapters_in_their_order(tmp_path):
    """Each is merged into what the ones before made, as if each had been saved with merge_and_unload."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    first = train(tmp_path, "llama", seed=0, target_modules=QV, modules_to_save=["norm"])
    second = train(tmp_path, "llama", seed=1, target_modules=["q_proj"], use_dora=True)
    model = AutoModelForCausalLM.from_pretrained(first.base)
    for adapter in (first.adapter, second.adapter):
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    want = model.state_dict()
    place = f"{first.base}+{first.adapter}+{second.adapter}"
    opened = open_model(place)
    for name in opened.specs:
        assert torch.allclose(
            opened.tensor(name), want[name], rtol=0, atol=2e-6 * float(want[name].abs().max())
        )
    other = open_model(f"{first.base}+{second.adapter}+{first.adapter}")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(opened.tensor(name), other.tensor(name), atol=1e-4)
    assert len({content_of(place), content_of(first.place), content_of(first.base)}) == 3


def test_a_merge_starts_from_unrounded_weights(tmp_path):
    """Of base + 0.3 (W + s B A - base) in bfloat16: nothing is rounded before the last step."""
    trained = train(tmp_path, "llama", dtype="bfloat16", target_modules=QV)
    models = {"base": open_model(trained.base), "math": open_model(trained.place)}
    block = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "math", "parameters": {"weight": 0.3}}],
        "dtype": "float32",
    }
    merged = build(Recipe.make(dict.fromkeys(models, "sha256:x"), [{"merge": block}]), models)
    name = "model.layers.1.self_attn.v_proj.weight"
    factors = load_file(trained.adapter / "adapter_model.safetensors")
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    delta = factors[f"{prefix}.lora_B.weight"].double() @ factors[f"{prefix}.lora_A.weight"].double()
    base = models["base"].tensor(name).double()
    want = base + 0.3 * delta  # alpha 8, r 8
    assert torch.allclose(merged.tensor(name).double(), want, rtol=0, atol=1e-6)
    rounded = base + 0.3 * (models["math"].tensor(name).double() - base)
    assert not torch.allclose(rounded, want, rtol=0, atol=1e-5)


def test_older_spellings_of_names(tmp_path):
    trained = train(tmp_path, "llama", target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    want = {name: tensor.clone() for name, tensor in open_model(trained.place).tensors()}
    file = trained.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    old = {
        key.replace(".lora_A.", ".lora_A.default.")
        .replace(".lora_B.", ".lora_B.default.")
        .replace("lm_head.weight", "lm_head.modules_to_save.default.weight"): value
        for key, value in tensors.items()
        if ".base_layer." not in key
    }
    old["base_model.model.lm_head.original_module.weight"] = torch.zeros(128, 32)
    save_file(old, file)
    model = open_model(trained.place)
    assert all(torch.equal(model.tensor(name), want[name]) for name in model.specs)
    save_file({key.removeprefix("base_model.model."): value for key, value in tensors.items()}, file)
    model = open_model(trained.place)
    assert all(torch.equal(model.tensor(name), want[name]) for name in model.specs)


def test_a_base_that_was_saved_without_its_prefix(tmp_path):
    """As the first GPT-2 was, and an adapter that was trained on the bare model."""
    trained = train(tmp_path, "gpt2", target_modules=GPT)
    want = {name: tensor.clone() for name, tensor in open_model(trained.place).tensors()}
    bare = Path(shutil.copytree(trained.base, tmp_path / "bare"))
    tensors = load_file(bare / "model.safetensors")
    short = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file(short, bare / "model.safetensors")
    model = open_model(f"{bare}+{trained.adapter}")
    assert all(torch.equal(model.tensor(name), want[f"transformer.{name}"]) for name in model.specs)
    file = trained.adapter / "adapter_model.safetensors"
    save_file({key.replace(".transformer.", "."): value for key, value in load_file(file).items()}, file)
    model = open_model(trained.place)
    assert all(torch.equal(model.tensor(name), want[name]) for name in model.specs)


def test_experts_of_an_adapter_that_names_them_one_by_one(tmp_path):
    """As peft wrote them with transformers 4, where experts were single modules."""
    base = make(tmp_path / "base", "mixtral")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = "model.layers.1.block_sparse_moe.experts.2.w1"
    a, b = torch.randn(4, 32), torch.randn(48, 4)
    names = {"A": a, "B": b}
    save_file(
        {f"base_model.model.{module}.lora_{key}.weight": value for key, value in names.items()},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2}))
    plain, model = open_model(base), open_model(f"{base}+{adapter}")
    want = plain.tensor(f"{module}.weight") + 0.5 * b @ a
    assert torch.allclose(model.tensor(f"{module}.weight"), want, atol=1e-6)
    other = f"{module.replace('.2.', '.1.')}.weight"
    assert torch.equal(model.tensor(other), plain.tensor(other))
