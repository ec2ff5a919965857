"""Adapters that are refused, and what is known of one before its weights are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.errors import ModelError
from evolve.weights.adapter import read_adapter
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from tests.architectures import make

pytest.importorskip("peft", reason="the oracle; it is in the extra dev")

from tests.weights.adapters import edit_config, train

QV = ["q_proj", "v_proj"]


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
