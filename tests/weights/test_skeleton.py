"""What transformers saves is explained; what is taken away, added or reshaped is named."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from evolve.errors import ModelError
from evolve.weights.model import TensorSpec
from evolve.weights.reader import open_model
from evolve.weights.skeleton import unexplained
from tests.tiny import make_model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "mistral", "gpt2", "gpt_neox"])
def test_what_transformers_saved_is_explained(arch, tied, tmp_path):
    model = open_model(make_model(tmp_path, arch, tied=tied))
    assert unexplained(model) == []
    for name in model.specs:
        fewer = {other: spec for other, spec in model.specs.items() if other != name}
        (message,) = unexplained(replace(model, specs=fewer))
        assert message.startswith("the weights lack ")
        assert name.rsplit(".", 1)[-1] in message


def test_gpt2_without_its_prefix(tmp_path):
    model = open_model(make_model(tmp_path, "gpt2"))
    bare = {name.removeprefix("transformer."): spec for name, spec in model.specs.items()}
    assert unexplained(replace(model, specs=bare)) == []


def test_extra_and_reshaped_tensors(tmp_path):
    model = open_model(make_model(tmp_path))
    more = {**model.specs, "model.layers.0.self_attn.q_proj.bias": TensorSpec((64,), "float32")}
    (message,) = unexplained(replace(model, specs=more))
    assert "LlamaForCausalLM has no place for model.layers.0.self_attn.q_proj.bias" in message
    wide = {**model.specs, "model.norm.weight": TensorSpec((65,), "float32")}
    (message,) = unexplained(replace(model, specs=wide))
    assert "model.norm.weight [65] instead of [64]" in message
    deeper = replace(model, config={**model.config, "num_hidden_layers": 3})
    (message,) = unexplained(deeper)
    assert "the weights lack model.layers.2." in message


def test_an_unknown_architecture_is_left_to_the_engine(tmp_path):
    model = open_model(make_model(tmp_path))
    assert unexplained(replace(model, config={"model_type": "nobody-knows"})) == []
    assert unexplained(replace(model, config={**model.config, "model_type": "vit"})) == []


def test_fused_experts_are_no_false_alarm(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    assert unexplained(open_model(tmp_path)) == []


def test_the_config_is_left_as_it_is(tmp_path):
    """Transformers fills in what is nested in a config; the written config.json must not change by it."""
    model = open_model(make_model(tmp_path))
    config = {**model.config, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    before = copy.deepcopy(config)
    unexplained(replace(model, config=config))
    assert config == before


@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_act": "none"}]
)
def test_a_config_that_transformers_refuses_is_named(change, tmp_path):
    model = open_model(make_model(tmp_path))
    with pytest.raises(ModelError, match=r"config.json: transformers cannot build .*correct the value"):
        unexplained(replace(model, config={**model.config, **change}))
