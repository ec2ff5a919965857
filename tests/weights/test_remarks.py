"""Doubts about adapters: what is said, and what is not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from evolve.weights.hub import resolve
from evolve.weights.reader import open_model
from evolve.weights.remarks import remarks
from tests.architectures import make


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make(folder / name, name) for name in ("llama", "llama_tied")}


def make_adapter(folder, *modules, base="", **config):
    folder.mkdir(parents=True)
    tensors = {}
    for module in modules:
        out = 128 if module == "lm_head" else 32
        tensors |= {
            f"{module}.lora_A.weight": torch.ones(2, 32),
            f"{module}.lora_B.weight": torch.ones(out, 2),
        }
    save_file(tensors, folder / "adapter_model.safetensors")
    document = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": base, **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


Q = "model.layers.0.self_attn.q_proj"


def told(*places):
    source = "+".join(map(str, places))
    parent = resolve("math", source)
    return remarks({"math": parent}, {"math": open_model(parent.path)})


def test_a_plain_model_gives_no_doubt(bases):
    assert told(bases["llama"]) == []


@pytest.mark.parametrize("base", ["", "llama", "meta/Llama", "/somewhere/else/llama", "HERE"])
def test_the_same_base_under_any_spelling(base, bases, tmp_path):
    adapter = make_adapter(tmp_path / "a", Q, base=str(bases["llama"]) if base == "HERE" else base)
    assert told(bases["llama"], adapter) == []


def test_another_base_is_named(bases, tmp_path):
    adapter = make_adapter(tmp_path / "a", Q, base="org/mistral-7b")
    fine = make_adapter(tmp_path / "b", Q, base="llama")
    (message,) = told(bases["llama"], fine, adapter)
    assert message.startswith(f"models.math: {adapter}: ")
    assert "was trained on org/mistral-7b, and is put on" in message


def test_tokens_that_only_the_adapter_s_tokenizer_has(bases, tmp_path):
    adapter = make_adapter(tmp_path / "a", Q)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bases["llama"] / file, adapter)
    assert told(bases["llama"], adapter) == []
    data = json.loads((adapter / "tokenizer.json").read_text())
    data["added_tokens"] += [{"content": f"<|t{number}|>", "id": 120 + number} for number in range(5)]
    (adapter / "tokenizer.json").write_text(json.dumps(data))
    (message,) = told(bases["llama"], adapter)
    assert "'<|t0|>', '<|t1|>', '<|t2|>' and 2 more" in message


def test_a_head_that_is_no_longer_tied(bases, tmp_path):
    head = make_adapter(tmp_path / "a", "lm_head")
    (message,) = told(bases["llama_tied"], head)
    assert "no longer tied" in message
    assert told(bases["llama"], head) == []
    assert told(bases["llama_tied"], make_adapter(tmp_path / "b", Q)) == []


def test_an_adapter_beside_the_model_that_is_not_named(bases, tmp_path):
    folder = shutil.copytree(bases["llama"], tmp_path / "both")
    for file in make_adapter(tmp_path / "a", Q).iterdir():
        shutil.copy(file, folder)
    (message,) = told(folder)
    assert (
        f"also holds an adapter (adapter_config.json), which is not used: name {folder}+{folder}" in message
    )
    assert told(folder, folder) == []
    name = f"{Q}.weight"
    assert not torch.equal(open_model(f"{folder}+{folder}").tensor(name), open_model(folder).tensor(name))


def test_build_and_validate_say_it(bases, tmp_path):
    from tests.cli.kit import call, read_json

    adapter = make_adapter(tmp_path / "a", Q, base="org/other")
    config = tmp_path / "merge.yml"
    merge = {"merge_method": "passthrough", "models": [{"model": f"{bases['llama']}+{adapter}"}]}
    config.write_text(json.dumps(merge))
    assert "Warning: models." in call("build", config, tmp_path / "out").stderr
    assert any("org/other" in warning for warning in read_json("validate", config)["warnings"])
    name = f"{Q}.weight"
    want = open_model(f"{bases['llama']}+{adapter}").tensor(name)
    assert torch.equal(open_model(tmp_path / "out").tensor(name), want)
    recipe = (tmp_path / "out" / "evolve_recipe.yaml").read_text()
    assert f"{bases['llama']}+{adapter}" in recipe
    call("build", tmp_path / "out" / "evolve_recipe.yaml", tmp_path / "again")
    assert torch.equal(open_model(tmp_path / "again").tensor(name), want)
