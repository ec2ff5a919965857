"""A student made of some layers: against transformers with the same layers, and through the stage."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from evolve.config.load import load_text
from evolve.errors import CandidateError, ConfigError
from evolve.space.space import derive
from evolve.stages.distill.damage import damages
from evolve.stages.distill.data import read
from evolve.stages.distill.stage import DistillStage
from evolve.stages.distill.student import StudentBlock, kept_layers, made_student
from evolve.training.rows import IGNORED
from evolve.weights.content import content_of
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from evolve.weights.writer import write_model
from tests.stages.distill.kit import block, models_of, shown
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_cache")


def student(keep) -> StudentBlock:
    return StudentBlock.model_validate({"keep_layers": keep})


@pytest.mark.parametrize("depth", range(1, 40))
def test_layers_are_evenly_spaced(depth):
    for count in range(1, depth + 1):
        found = kept_layers(count, depth)
        if count == 1:
            assert found == (0,)
            continue
        step = Fraction(depth - 1, count - 1)
        assert found == tuple(math.floor(place * step + Fraction(1, 2)) for place in range(count))
        assert found[0] == 0 and found[-1] == depth - 1 and len(set(found)) == count


@pytest.mark.parametrize("keep", [[0, 2], [1], 2, 4])
def test_it_computes_what_transformers_does_with_these_layers(tmp_path, keep):
    from transformers import AutoModelForCausalLM

    make_model(tmp_path / "deep", seed=5, layers=4)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "deep", dtype=torch.float32).eval()
    layers = kept_layers(keep, 4)
    network.model.layers = torch.nn.ModuleList([network.model.layers[index] for index in layers])
    made = made_student(student(keep), open_model(str(tmp_path / "deep")))
    assert made.config["num_hidden_layers"] == len(layers)
    theirs = dict(network.state_dict())
    ours = dict(made.tensors())
    tied = {"lm_head.weight"} - ours.keys()
    assert ours.keys() == theirs.keys() - tied
    assert all(torch.equal(value.float(), theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "rising order"),
        ([1, 1], "rising order"),
        ([2, 1], "rising order"),
        ([-1, 1], "rising order"),
        (0, "at least 1 layer"),
        ({"low": 0, "high": 3}, "at least 1 layer"),
    ],
)
def test_nonsense_is_refused_where_it_stands(home, keep, message):
    [(path, said)] = block(home, student={"keep_layers": keep}).problems()
    assert path == ("student", "keep_layers") and message in said


@pytest.mark.parametrize("keep", [3, [0, 2], {"choices": [1, 3]}, {"low": 1, "high": 3}])
def test_more_layers_than_there_are(home, keep):
    found = DistillStage.check(block(home, model="teacher", student={"keep_layers": keep}), models_of(home))
    assert found[0][0] == "student.keep_layers" and "the model has 2 layers" in found[0][1]


def test_the_stage_trains_the_layers_that_are_kept(home):
    changes = {"model": "teacher", "student": {"keep_layers": [1]}}
    models = models_of(home)
    made = DistillStage.run(block(home, **changes), models, seed=0)
    outline = DistillStage.outline(block(home, **changes), models)
    assert outline.config["num_hidden_layers"] == made.config["num_hidden_layers"] == 1
    assert outline.specs.keys() == made.specs.keys()
    name = "model.layers.0.mlp.down_proj.weight"
    start = models["teacher"].tensor("model.layers.1.mlp.down_proj.weight").float()
    moved = (made.tensor(name).float() - start).norm() / start.norm()
    assert 0 < moved < 0.2, "it starts from layer 1 of the model"
    first = DistillStage.run(block(home, **{**changes, "student": {"keep_layers": [0]}}), models, seed=0)
    assert not torch.equal(first.tensor(name), made.tensor(name)), "kept apart by the layers"


def test_the_number_of_layers_can_be_searched(home):
    assert block(home, student={"keep_layers": {"choices": [1, 2]}}).reshapes
    assert not block(home, student={"keep_layers": 2}).reshapes
    text = f"""\
models: {{big: {home}/teacher}}
pipeline:
  - distill:
      model: big
      student: {{keep_layers: {{low: 1, high: 2}}}}
      teacher: {{kind: hf, model: big}}
      dataset: {{path: {home}/data.jsonl}}
      loss_functions: [{{function: kl}}]
"""
    assert [gene.name for gene in derive(load_text(text, "c.yaml")).genes] == ["distill.student.keep_layers"]
    with pytest.raises(ConfigError, match=r"c.yaml:5:.*rising order"):
        load_text(text.replace("{low: 1, high: 2}", "[3, 3]"), "c.yaml")


def test_a_recipe_that_does_not_fit_fails_by_name(home):
    with pytest.raises(CandidateError, match="has 1 layers, and 2 is asked for"):
        DistillStage.run(block(home, student={"keep_layers": 2}), models_of(home), seed=0)


def llama(folder: Path, *, layers: int = 4, arch: str = "llama", **shape: Any) -> Path:
    """A model of width 48 with 6 heads of 8 in 3 groups, every parameter random."""
    make_model(folder, layers=layers)
    name = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[arch]
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    config = getattr(transformers, name)(
        **{**sizes, "num_hidden_layers": layers, "vocab_size": 128, "head_dim": 8, **shape},
        bos_token_id=1,
        eos_token_id=2,
    )
    network = transformers.AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw) + (parameter.dim() == 1))
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("width", [16, 32])
def test_a_narrower_student_computes_with_the_first_dimensions(tmp_path, arch, width):
    """As a network of transformers of that size does, whose parameters are filled by hand, head by head."""
    tied = arch == "llama"
    opened = open_model(str(llama(tmp_path / "m", layers=2, arch=arch, tie_word_embeddings=tied)))
    made = made_student(StudentBlock(hidden_size=width), opened)
    write_model(made, tmp_path / "narrow")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", dtype=torch.float32)
    heads, groups, units = width // 8, width // 16, 2 * width
    config = network.config
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (width, heads, 8)
    assert (config.num_key_value_heads, config.intermediate_size) == (groups, units)
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ours, theirs = network.model.layers[1], wide.model.layers[1]
    q, k, v = (getattr(ours.self_attn, f"{name}_proj").weight.reshape(-1, 8, width) for name in "qkv")
    for part, name, count in ((q, "q", heads), (k, "k", groups), (v, "v", groups)):
        whole = getattr(theirs.self_attn, f"{name}_proj").weight.reshape(-1, 8, 48)
        assert len(part) == count
        assert all(torch.equal(part[head], whole[head][:, :width]) for head in range(count))
    by_head = theirs.self_attn.o_proj.weight.reshape(48, 6, 8)[:width, :heads]
    assert torch.equal(ours.self_attn.o_proj.weight.reshape(width, heads, 8), by_head)
    assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight[:width, :units])
    assert torch.equal(network.get_input_embeddings().weight, wide.get_input_embeddings().weight[:, :width])
    assert torch.equal(network.lm_head.weight, wide.lm_head.weight[:, :width])
    assert torch.isfinite(network(input_ids=torch.arange(3, 20)[None]).logits).all()


def test_a_narrower_student_is_the_model_where_the_rest_of_it_is_silent(tmp_path):
    """With zeros in all else the wide model says the same; its norms see the mean of 48 numbers."""
    wide = transformers.AutoModelForCausalLM.from_pretrained(llama(tmp_path / "m"), dtype=torch.float32)
    narrow = made_student(StudentBlock(hidden_size=16), open_model(str(tmp_path / "m")))
    ours, _ = open_network(narrow)
    with torch.no_grad():
        for name, value in wide.named_parameters():
            part = tuple(slice(size) for size in ours.get_parameter(name).shape)
            kept = value[part].clone()
            value.zero_()
            value[part] = kept * (3**-0.5 if "norm" in name else 1.0)
        wide.config.rms_norm_eps = 0.0
        for module in (*wide.modules(), *ours.modules()):
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.0
        ids = torch.arange(3, 20)[None]
        torch.testing.assert_close(
            ours(input_ids=ids).logits, wide(input_ids=ids).logits, rtol=1e-3, atol=1e-3
        )


def test_the_whole_width_is_the_model(tmp_path):
    opened = open_model(str(llama(tmp_path / "m")))
    assert made_student(StudentBlock(hidden_size=48), opened) is opened
    both = made_student(StudentBlock(hidden_size=32, keep_layers=2), opened)
    assert both.config["num_hidden_layers"] == 2 and both.config["hidden_size"] == 32
    assert both.specs["model.layers.1.self_attn.k_proj.weight"].shape == (16, 32)


def test_a_width_that_no_head_fits_is_refused_by_name(tmp_path, home):
    opened = open_model(str(llama(tmp_path / "m")))
    [(key, said)] = StudentBlock(hidden_size=24).misfits(opened)
    assert key == "hidden_size" and "has the parts 16, 32, 48" in said
    assert StudentBlock(hidden_size=64).misfits(opened)
    choice = StudentBlock.model_validate({"hidden_size": {"choices": [16, 40]}})
    assert choice.searched and "hidden_size 40" in choice.misfits(opened)[0][1]
    make_model(tmp_path / "other", "gpt2")
    [(_, said)] = StudentBlock(hidden_size=16).misfits(open_model(str(tmp_path / "other")))
    assert "'gpt2' cannot be narrowed: llama, mistral, qwen2, qwen3 can" in said
    found = DistillStage.check(block(home, student={"hidden_size": 7}), models_of(home))
    assert found[0][0] == "student.hidden_size"
    for wrong, place in (({}, ()), ({"keep_layers": [0], "keep_by": "damage"}, ("keep_by",))):
        [(path, _)] = StudentBlock.model_validate(wrong).problems()
        assert path == place


def test_a_narrower_student_is_trained(home, tmp_path):
    models = {**models_of(home)}
    opened = open_model(str(llama(tmp_path / "m", layers=2)))
    models["student"] = replace(opened, content=content_of(str(tmp_path / "m")))
    changes = {"student": {"hidden_size": 16, "keep_layers": 1}}
    made = DistillStage.run(block(home, **changes), models, seed=0)
    outline = DistillStage.outline(block(home, **changes), models)
    assert {name: spec.shape for name, spec in outline.specs.items()} == {
        name: spec.shape for name, spec in made.specs.items()
    }
    assert outline.architecture == made.architecture


def test_the_layer_that_does_nothing_goes_first(home, tmp_path, monkeypatch):
    """Layer 2 adds nothing, so its lack costs nothing; evenly chosen layers would have kept it."""
    folder = make_model(tmp_path / "deep", seed=5, layers=4)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for part in (network.model.layers[2].self_attn.o_proj, network.model.layers[2].mlp.down_proj):
            part.weight.zero_()
    network.save_pretrained(folder)
    models = models_of(home)
    models["deep"] = replace(open_model(str(folder)), content=content_of(str(folder)))
    assert 2 in kept_layers(3, 4)
    changes = {"model": "deep", "student": {"keep_layers": 3, "keep_by": "damage"}}
    made = DistillStage.run(block(home, **changes), models, seed=0)
    assert made.config["num_hidden_layers"] == 3
    assert shown(made)["layers"] == [0, 1, 3]
    # By hand: the model without each layer, its loss on the same documents.
    tokenizer = load_tokenizer(models["deep"].files, models["deep"].config)
    documents, _ = read(home / "data.jsonl", tokenizer, 48)
    costs = damages(models["deep"], documents)
    layers = list(network.model.layers)
    for gone in (1, 2):
        network.model.layers = torch.nn.ModuleList([one for one in layers if one is not layers[gone]])
        assert costs[gone] == pytest.approx(
            loss_of(network, documents) - loss_of_all(network, layers, documents)
        )
    assert costs[2] == 0 and all(abs(cost) > 1e-4 for cost in costs[:2] + costs[3:])
    # What was measured is kept: another number of layers measures nothing.
    monkeypatch.setattr("evolve.stages.distill.damage._measured", lambda *_: pytest.fail("measured again"))
    DistillStage.run(
        block(home, **{**changes, "student": {"keep_layers": 2, "keep_by": "damage"}}), models, seed=0
    )


def loss_of(network, documents) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for one in documents:
            log_q = torch.log_softmax(
                network(input_ids=torch.tensor([one.tokens]), use_cache=False).logits[0], -1
            )
            for place, label in enumerate(one.labels[1:]):
                if label != IGNORED:
                    total -= float(log_q[place, label])
                    count += 1
    return total / count


def loss_of_all(network, layers, documents) -> float:
    network.model.layers = torch.nn.ModuleList(layers)
    return loss_of(network, documents)
