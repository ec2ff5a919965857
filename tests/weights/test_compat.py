"""Pairs of models that differ in one thing each: that thing is named, with a mend, and nothing else is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from evolve.weights import mapped
from evolve.weights.compat import differences
from evolve.weights.reader import open_model
from tests.tiny import make_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def base(llama):
    return open_model(llama)


def other(tmp_path, *args, **options):
    return open_model(make_model(tmp_path / "other", *args, seed=1, **options))


def only(models):
    found = differences(models)
    assert len(found) == 1, found
    assert found[0].startswith("model 'math' against 'base': ")
    return found[0]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_siblings_fit(arch, tmp_path):
    models = {
        name: open_model(make_model(tmp_path / name, arch, seed=seed)) for seed, name in enumerate("abc")
    }
    assert differences(models) == []
    assert differences({"a": models["a"]}) == []
    assert differences({}) == []


def test_other_dtype_is_no_difference(base, tmp_path):
    assert differences({"base": base, "math": other(tmp_path, dtype="bfloat16")}) == []


def test_no_weights_are_read(base, tmp_path, monkeypatch):
    models = {"base": base, "math": other(tmp_path, vocab=140)}
    monkeypatch.setattr(mapped, "_map", lambda header: pytest.fail("a weight was read"))
    assert differences(models)


def test_architecture(base, tmp_path):
    message = only({"base": base, "math": other(tmp_path, "mistral")})
    assert "MistralForCausalLM, not LlamaForCausalLM" in message
    assert "fine-tuned from one base" in message


def test_depth(base, tmp_path):
    assert "3 layers, not 2; use models of one depth" in only(
        {"base": base, "math": other(tmp_path, layers=3)}
    )


def test_vocabulary_size(base, tmp_path):
    assert "a vocabulary of 140 tokens, not 128" in only({"base": base, "math": other(tmp_path, vocab=140)})


def test_tied_state_both_ways(base, tmp_path):
    untied = other(tmp_path, tied=False)
    assert "it has its own head, the other ties" in only({"base": base, "math": untied})
    assert "it ties its head to the embedding, the other has" in only({"base": untied, "math": base})


def test_shapes_and_names(base):
    specs = dict(base.specs)
    narrow = {**specs, "model.norm.weight": replace(specs["model.norm.weight"], shape=(32,))}
    assert "model.norm.weight [32] instead of [64]" in only(
        {"base": base, "math": replace(base, specs=narrow)}
    )
    del specs["model.norm.weight"]
    assert "lacks model.norm.weight; " in only({"base": base, "math": replace(base, specs=specs)})
    assert "has model.norm.weight besides; " in only({"base": replace(base, specs=specs), "math": base})
    assert "and 16 more" in only(
        {"base": base, "math": replace(base, specs={"model.norm.weight": base.specs["model.norm.weight"]})}
    )


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_act", "head_dim"])
def test_same_shapes_other_arithmetic(key, base):
    changed = replace(base, config={**base.config, key: "other"})
    assert f"{key} other, not {base.config[key]}" in only({"base": base, "math": changed})


def test_rope(base):
    def with_rope(**rope):
        config = {key: value for key, value in base.config.items() if key != "rope_parameters"}
        return replace(base, config={**config, **rope})

    same = [
        with_rope(rope_theta=10000.0),
        with_rope(rope_theta=10000, rope_scaling=None),
        with_rope(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        with_rope(),
    ]
    for model in same:
        assert differences({"base": base, "math": model}) == []
    assert "rope_theta 500000, not 10000" in only({"base": base, "math": with_rope(rope_theta=500000.0)})
    four = with_rope(rope_scaling={"type": "linear", "factor": 2.0})
    five = with_rope(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    assert differences({"four": four, "five": five}) == []
    assert "rope scaling" in only({"base": base, "math": four})
    assert "rope scaling" in only({"base": four, "math": base})


def test_another_vocabulary_of_the_same_size(base, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "math")
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(data))
    message = only({"base": base, "math": open_model(folder)})
    assert "2 tokens differ" in message
    assert f"'a' is {vocab['a']} instead of is {vocab['b']}" not in message
    assert f"'a' is {vocab['a']} and not {vocab['b']}" in message


def test_another_added_token(base, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "math")
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"].append({**data["added_tokens"][0], "id": 500, "content": "<|im_start|>"})
    path.write_text(json.dumps(data))
    assert "1 tokens differ: '<|im_start|>' is 500 and not there" in only(
        {"base": base, "math": open_model(folder)}
    )


def test_folders_without_a_tokenizer_are_judged_by_size(base, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "math")
    (folder / "tokenizer.json").unlink()
    assert differences({"base": base, "math": open_model(folder)}) == []


def test_a_damaged_tokenizer_is_named(base, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "math")
    for text in ("{", "{}", '{"model": {"vocab": 7}}', '{"model": {"vocab": ["a"]}}'):
        (folder / "tokenizer.json").write_text(text)
        found = differences({"base": base, "math": open_model(folder)})
        assert len(found) == 1
        assert str(folder / "tokenizer.json") in found[0]


def test_every_odd_model_is_reported(base, tmp_path):
    deep = open_model(make_model(tmp_path / "deep", layers=3))
    wide = open_model(make_model(tmp_path / "wide", vocab=140))
    found = differences({"base": base, "deep": deep, "wide": wide})
    assert [message.split(":")[0] for message in found] == [
        "model 'deep' against 'base'",
        "model 'wide' against 'base'",
    ]
