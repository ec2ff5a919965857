"""A student made of some layers: against transformers with the same layers, and through the stage."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from evolve.config.load import load_text
from evolve.errors import CandidateError, ConfigError
from evolve.space.space import derive
from evolve.stages.distill.stage import DistillStage
from evolve.stages.distill.student import StudentBlock, kept_layers, made_student
from evolve.weights.reader import open_model
from tests.stages.distill.kit import block, models_of
from tests.tiny import make_model

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
