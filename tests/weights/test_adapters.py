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

from evolve.errors import ModelError
from evolve.stages.pipeline import build
from evolve.types import Recipe
from evolve.weights.adapter import read_adapter
from evolve.weights.compat import differences
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from evolve.weights.skeleton import unexplained
from evolve.weights.writer import write_model
from tests.architectures import logits, make

pytest.importorskip("peft", reason="the oracle; it is in the extra dev")

from tests.weights.adapters import edit_config, train

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


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"), "llama", target_modules=QV)


@pytest.fixture
def adapter(plain, tmp_path):
    return Path(shutil.copytree(plain.adapter, tmp_path / "adapter"))


def test_opening_reads_no_weights(plain, monkeypatch):
    from evolve.weights import mapped

    monkeypatch.setattr(mapped, "_map", lambda header: pytest.fail("a weight was read"))
    open_model(plain.place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"this one is IA3; .*merge_and_unload"),
        ({"peft_type": "LOHA"}, "this one is LOHA"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING changes no weights"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "it repeats layers"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is olora"),
        ({"use_dora": True}, "has no magnitude vector"),
        ({"r": 16}, "rank 16, its factors have 8"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 2, its factors have 8"),
        ({"rank_pattern": ["q_proj"]}, "gives no rank or no alpha"),
        ({"rank_pattern": {"(": 2}}, "gives no rank or no alpha"),
        ({"r": None}, "gives no rank or no alpha"),
        ({"r": 0}, "rank 0 and alpha"),
        ({"lora_alpha": "much"}, "gives no rank or no alpha"),
        ({"lora_alpha": float("inf")}, "alpha inf"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(changes, message, plain, adapter):
    edit_config(adapter, **changes)
    with pytest.raises(ModelError, match=message):
        open_model(f"{plain.base}+{adapter}")


def test_experts_that_are_fused_are_refused(tmp_path):
    trained_on = {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}
    trained = train(tmp_path, "qwen3_moe", **trained_on)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.experts, experts that are fused in memory"):
        open_model(trained.place)


def test_an_adapter_of_another_shape(plain, adapter, tmp_path):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    save_file({**tensors, name: torch.zeros(48, 8)}, file)
    with pytest.raises(
        ModelError, match=r"v_proj\.weight is \[16, 32\] in the base, .*\[48, 8\] and \[8, 32\]"
    ):
        open_model(f"{plain.base}+{adapter}")
    save_file({**tensors, name.replace("v_proj", "w_proj"): torch.zeros(48, 8)}, file)
    with pytest.raises(ModelError, match="w_proj has no lora_A"):
        open_model(f"{plain.base}+{adapter}")
    more = {key.replace("layers.0", "layers.7"): value.clone() for key, value in tensors.items()}
    save_file(more, file)
    with pytest.raises(ModelError, match=r"factors for model\.layers\.7\..*, which .*base lacks"):
        open_model(f"{plain.base}+{adapter}")
    save_file({**tensors, "base_model.model.model.layers.0.self_attn.lora_C": torch.zeros(3)}, file)
    with pytest.raises(ModelError, match=r"does not know what tensor .*lora_C"):
        open_model(f"{plain.base}+{adapter}")
    save_file({**tensors, "base_model.model.model.norm.bias": torch.zeros(32)}, file)
    with pytest.raises(ModelError, match=r"a value for model\.norm\.bias, which"):
        open_model(f"{plain.base}+{adapter}")
    with pytest.raises(ModelError, match="lacks"):
        open_model(f"{make(tmp_path / 'gpt2', 'gpt2')}+{plain.adapter}")


def test_a_resized_vocabulary(plain, adapter):
    file = adapter / "adapter_model.safetensors"
    more = {"base_model.model.model.embed_tokens.weight": torch.zeros(130, 32)}
    save_file({**load_file(file), **more}, file)
    with pytest.raises(ModelError, match=r"resize_token_embeddings\(130\)"):
        open_model(f"{plain.base}+{adapter}")


def test_tokens_that_the_base_lacks(tmp_path):
    trained = train(tmp_path, "llama", target_modules=QV, trainable_token_indices=[3, 127])
    edit_config(trained.adapter, trainable_token_indices=[3, 128])
    with pytest.raises(ModelError, match="a vector for token 128"):
        open_model(trained.place)
    edit_config(trained.adapter, trainable_token_indices=[3])
    with pytest.raises(ModelError, match=r"wants \[1, 32\]"):
        open_model(trained.place)
    edit_config(trained.adapter, trainable_token_indices=...)
    with pytest.raises(ModelError, match="does not say which tokens"):
        open_model(trained.place)


def test_pickled_and_damaged_adapters(plain, adapter):
    import subprocess
    import sys

    file = adapter / "adapter_model.safetensors"
    want = load_file(file)
    torch.save(want, adapter / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match="never unpickles") as caught:
        open_model(f"{plain.base}+{adapter}")
    command = str(caught.value).partition("Convert it: ")[2]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    got = load_file(file)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ModelError, match="truncated or damaged"):
        open_model(f"{plain.base}+{adapter}")
    file.unlink()
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        open_model(f"{plain.base}+{adapter}")
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        open_model(f"{plain.base}+{plain.base}")


def test_content_is_of_base_and_adapter(plain, adapter):
    first = content_of(plain.place)
    assert first == content_of(f"{plain.base}+{adapter}")  # wherever it is
    edit_config(adapter, base_model_name_or_path="/elsewhere", peft_version="0.1")
    assert first == content_of(f"{plain.base}+{adapter}")
    edit_config(adapter, lora_alpha=9)
    assert first != content_of(f"{plain.base}+{adapter}")
    edit_config(adapter, lora_alpha=8)
    assert first == content_of(f"{plain.base}+{adapter}")
    file = adapter / "adapter_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    assert first != content_of(f"{plain.base}+{adapter}")
    assert content_of(plain.base) not in {first, content_of(f"{plain.base}+{adapter}")}


def test_read_adapter_knows_its_base(plain):
    assert read_adapter(plain.adapter).base == str(plain.base)
