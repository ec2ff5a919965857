"""Later stages are checked against the shape of what earlier ones make, before any weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from evolve.stages.merge.block import MergeBlock
from evolve.stages.pipeline import check, outputs
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from evolve.weights.model import Model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} was read")

    folder = tmp_path_factory.mktemp("models")
    depths = {"a": 2, "b": 2, "deep": 3}
    made = {
        name: open_model(make_model(folder / name, seed=seed, layers=layers, vocab=120))
        for seed, (name, layers) in enumerate(depths.items())
    }
    return {name: replace(model, tensor=refuse) for name, model in made.items()}


def stacked(**keys: Any) -> dict[str, Any]:
    sources = [[{"model": "a", "layer_range": [0, 2]}], [{"model": "b", "layer_range": [1, 2]}]]
    return {
        "name": "stacked",
        "merge_method": "passthrough",
        "slices": [{"sources": one} for one in sources],
        **keys,
    }


def linear(*names: str, **keys: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": name} for name in names],
        "parameters": {"weight": 1},
        **keys,
    }


def found(models: dict[str, Model], *stages: dict[str, Any]) -> list[tuple[str, str]]:
    return check([("merge", MergeBlock.model_validate(stage)) for stage in stages], models)


def test_a_merge_with_what_became_deeper(models: dict[str, Model]) -> None:
    assert found(models, stacked(), linear("stacked", "deep")) == []
    ((path, message),) = found(models, stacked(), linear("stacked", "a"))
    assert path == "pipeline.1.merge.models"
    assert "model 'a' against 'stacked': 2 layers, not 3" in message


def test_layers_that_only_the_output_has(models: dict[str, Model]) -> None:
    def again(end: int) -> dict[str, Any]:
        sources = [{"model": "stacked", "layer_range": [1, end]}]
        return {"merge_method": "passthrough", "slices": [{"sources": sources}]}

    assert found(models, stacked(), again(3)) == []
    ((path, message),) = found(models, stacked(), again(4))
    assert path == "pipeline.1.merge.slices.0.sources.0.layer_range"
    assert message == "stacked has 3 layers, not 4"


def test_filters_are_held_against_the_output(models: dict[str, Model]) -> None:
    weight = [{"filter": "layers.2.", "value": 2}, {"value": 1}]
    assert found(models, stacked(), linear("stacked", "deep", parameters={"weight": weight})) == []
    ((path, message),) = found(models, linear("a", "b", parameters={"weight": weight}))
    assert path == "pipeline.0.merge.parameters.weight.0.filter"
    assert "layers.2." in message


def test_a_stage_that_may_be_off_has_two_shapes(models: dict[str, Model]) -> None:
    switch = {"choices": [False, True]}
    for other, words in (
        ("deep", "against 'stacked': 3 layers, not 2"),
        ("a", "against 'stacked': 2 layers, not 3"),
    ):
        ((path, message),) = found(models, stacked(enabled=switch), linear("stacked", other))
        assert path == "pipeline.1.merge.models"
        assert words in message
    assert found(models, stacked(enabled=False), linear("stacked", "a")) == []
    assert found(models, linear("b", "a", name="soup", enabled=switch), linear("soup", "a")) == []


def test_slices_that_may_be_off_are_taken_to_be_on(models: dict[str, Model]) -> None:
    stage = stacked()
    stage["slices"][1]["enabled"] = {"choices": [False, True]}
    assert found(models, stage, linear("stacked", "deep")) == []


def test_a_stage_with_problems_looks_like_the_model_that_it_starts_from(models: dict[str, Model]) -> None:
    stage = stacked(base_model="a")
    stage["slices"][1]["sources"][0]["layer_range"] = [1, 9]
    ((path, _),) = found(models, stage, linear("stacked", "a"))
    assert path == "pipeline.0.merge.slices.1.sources.0.layer_range"


def test_the_shapes_are_those_of_what_is_built(models: dict[str, Model]) -> None:
    blocks = [
        MergeBlock.model_validate(one) for one in (stacked(), linear("stacked", "deep", dtype="bfloat16"))
    ]
    first, second = outputs([("merge", block) for block in blocks], models)
    assert first.config["num_hidden_layers"] == second.config["num_hidden_layers"] == 3
    assert {spec.dtype for spec in second.specs.values()} == {"bfloat16"}
    assert second.config["dtype"] == "bfloat16"
