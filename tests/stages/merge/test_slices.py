"""Which layers a merge of slices is made of, with which values: derived once more, in float64, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.errors import CandidateError
from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.weights.reader import open_model
from tests.stages.merge.memory import memory_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from evolve.weights.model import Model

DEPTHS = {"a": 3, "b": 5, "c": 4}
INNER = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
FRONT, BACK = ("model.embed_tokens.weight",), ("model.norm.weight", "lm_head.weight")


def make(seed: int, layers: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    names = [*BACK, *(f"model.layers.{i}.{rest}" for i in range(layers) for rest in INNER), *FRONT]
    tensors = {name: torch.randn(6, generator=generator) for name in names}
    config = {"num_hidden_layers": layers, "tie_word_embeddings": False}
    return memory_model(tensors, files=f"files{seed}", **config)


MODELS = {name: make(seed, layers) for seed, (name, layers) in enumerate(DEPTHS.items())}


def value_at(sources: list[Any], tensor: str, t: float) -> float | None:
    """Return the first value that fits: mergekit's rules for levels, filters and gradients, from its docs."""
    for source in sources:
        if source is None:
            continue
        if isinstance(source, list) and source and isinstance(source[0], dict):
            fits = [
                one["value"] for one in source if one.get("filter", "*") == "*" or one["filter"] in tensor
            ]
            if not fits:
                continue
            source = fits[0]
        if isinstance(source, list):
            return float(np.interp(t * (len(source) - 1), range(len(source)), source))
        return float(source)
    return None


def linear_by_hand(recipe: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return every tensor of a linear merge of slices, in float64."""
    result = {}

    def add(name: str, piece: dict[str, Any], t: float, layers: list[int | None], rest: str) -> None:
        weights, tensors = [], []
        for source, layer in zip(piece["sources"], layers, strict=True):
            levels = [one.get("parameters", {}).get("weight") for one in (source, piece, recipe)]
            weights.append(value_at(levels, name, t))
            own = name if layer is None else f"model.layers.{layer}.{rest}"
            tensors.append(MODELS[source["model"]].tensor(own).double().numpy())
        total = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
        normalize = [one.get("parameters", {}).get("normalize") for one in (piece, recipe)]
        result[name] = total / (1.0 if value_at(normalize, name, t) == 0 else sum(weights))

    pieces = recipe["slices"]
    for name in FRONT:
        add(name, pieces[0], 0.0, [None] * len(pieces[0]["sources"]), "")
    for name in BACK:
        add(name, pieces[-1], 0.0, [None] * len(pieces[-1]["sources"]), "")
    number = 0
    for piece in pieces:
        first, end = piece["sources"][0]["layer_range"]
        for position in range(end - first):
            t = position / (end - first - 1) if end - first > 1 else 1.0
            layers = [source["layer_range"][0] + position for source in piece["sources"]]
            for rest in INNER:
                add(f"model.layers.{number}.{rest}", piece, t, layers, rest)
            number += 1
    return result


numbers = st.integers(1, 20).map(lambda n: n / 10)
gradients = st.lists(numbers, min_size=1, max_size=4)
values = numbers | gradients
filtered = st.lists(
    st.fixed_dictionaries(
        {"filter": st.sampled_from(["mlp", "attn", "layers.1", "norm", "embed"]), "value": values}
    ),
    min_size=1,
    max_size=3,
)
weights = values | filtered | st.tuples(filtered, values).map(lambda pair: [*pair[0], {"value": pair[1]}])


@st.composite
def slices(draw: Any) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(DEPTHS)), min_size=1, max_size=3, unique=True))
    length = draw(st.integers(1, min(DEPTHS[name] for name in names)))
    sources = []
    for name in names:
        first = draw(st.integers(0, DEPTHS[name] - length))
        source: dict[str, Any] = {"model": name, "layer_range": [first, first + length]}
        if draw(st.booleans()):
            source["parameters"] = {"weight": draw(weights)}
        sources.append(source)
    piece: dict[str, Any] = {"sources": sources}
    parameters: dict[str, Any] = {}
    if draw(st.booleans()):
        parameters["weight"] = draw(weights)
    if draw(st.booleans()):
        parameters["normalize"] = draw(st.booleans())
    return {**piece, "parameters": parameters} if parameters else piece


recipes = st.fixed_dictionaries(
    {
        "merge_method": st.just("linear"),
        "slices": st.lists(slices(), min_size=1, max_size=4),
        "parameters": st.fixed_dictionaries({"weight": values, "normalize": st.booleans()}),
    }
)


@given(recipes)
@settings(deadline=None)
def test_every_tensor_of_any_slices(recipe: dict[str, Any]) -> None:
    block = MergeBlock.model_validate(recipe)
    assert block.problems() == []
    model = MergeStage.run(block, MODELS, seed=0)
    wanted = linear_by_hand(recipe)
    assert model.specs.keys() == wanted.keys()
    for name, tensor in model.tensors():
        assert np.allclose(tensor.double().numpy(), wanted[name], rtol=1e-5, atol=1e-5), name
    counted = sum(
        piece["sources"][0]["layer_range"][1] - piece["sources"][0]["layer_range"][0]
        for piece in recipe["slices"]
    )
    assert model.config["num_hidden_layers"] == counted
    headers = MergeStage.outline(block, MODELS)
    assert headers.specs == model.specs and headers.config == model.config


@given(recipes)
@settings(deadline=None, max_examples=30)
def test_a_module_default_is_the_same_as_no_modules(recipe: dict[str, Any]) -> None:
    inner = {"slices": recipe["slices"], "parameters": recipe["parameters"]}
    outer = {"merge_method": "linear", "modules": {"default": inner}, "parameters": {"weight": 99.0}}
    plain = MergeStage.run(MergeBlock.model_validate(recipe), MODELS, seed=0)
    module = MergeStage.run(MergeBlock.model_validate(outer), MODELS, seed=0)
    assert plain.specs == module.specs
    assert all(torch.equal(tensor, module.tensor(name)) for name, tensor in plain.tensors())


@given(recipes)
@settings(deadline=None, max_examples=30)
def test_tensors_that_are_said_to_be_the_same_are(recipe: dict[str, Any]) -> None:
    twice = {**recipe, "slices": recipe["slices"] * 2}
    model = MergeStage.run(MergeBlock.model_validate(twice), MODELS, seed=0)
    count = model.config["num_hidden_layers"] // 2
    for name, first in model.same.items():
        assert torch.equal(model.tensor(name), model.tensor(first))
        assert first not in model.same
    no_filters = "filter" not in str(recipe)
    if no_filters:
        again = [
            name
            for name in model.specs
            if name.startswith("model.layers.") and int(name.split(".")[2]) >= count
        ]
        assert set(again) <= model.same.keys()


def whole(parameters: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {
        "models": [{"model": "base"}, {"model": "one", "parameters": parameters or {}}, {"model": "two"}],
        **keys,
    }


@pytest.mark.parametrize(
    "keys",
    [
        {"merge_method": "linear", "parameters": {"weight": [0.2, 1.0, 0.4]}},
        {"merge_method": "ties", "base_model": "base", "parameters": {"weight": 0.5, "density": [1, 0.2]}},
        {"merge_method": "dare_ties", "base_model": "base", "parameters": {"weight": 0.5, "density": 0.4}},
        {"merge_method": "task_arithmetic", "base_model": "base", "parameters": {"weight": [0.2, 1]}},
    ],
    ids=lambda keys: keys["merge_method"],
)
@pytest.mark.parametrize("layers", [1, 3])
def test_slices_of_whole_models_give_the_same_bits_as_models(tmp_path: Path, keys: Any, layers: int) -> None:
    models = {
        name: open_model(make_model(tmp_path / name, seed=seed, layers=layers, vocab=120))
        for seed, name in enumerate(("base", "one", "two"))
    }
    listed = MergeBlock.model_validate({**keys, "models": [{"model": name} for name in models]})
    sources = [{"model": name, "layer_range": [0, layers]} for name in models]
    sliced = MergeBlock.model_validate({**keys, "slices": [{"sources": sources}]})
    assert MergeStage.check(sliced, models) == []
    first, second = (MergeStage.run(block, models, seed=3) for block in (listed, sliced))
    assert first.specs == second.specs and first.config == second.config
    assert all(torch.equal(tensor, second.tensor(name)) for name, tensor in first.tensors())


def dare(slices: Any, seed: int = 0) -> Model:
    block = {
        "merge_method": "dare_linear",
        "base_model": "a",
        "parameters": {"weight": 1, "density": 0.5},
        "slices": slices,
    }
    return MergeStage.run(MergeBlock.model_validate(block), MODELS, seed=seed)


def test_a_layer_that_appears_twice_has_masks_of_its_own() -> None:
    sources = [{"model": "a", "layer_range": [1, 2]}, {"model": "b", "layer_range": [2, 3]}]
    model = dare([{"sources": sources}] * 4)
    one = [model.tensor(f"model.layers.{number}.{rest}") for number in range(4) for rest in INNER]
    assert len({tuple(tensor.tolist()) for tensor in one}) > 6
    assert model.same == {}
    again = dare([{"sources": sources}] * 4)
    assert all(torch.equal(tensor, again.tensor(name)) for name, tensor in model.tensors())
    # The mask goes by the place in the result: another first slice leaves the second as it is.
    other = [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [4, 5]}]
    moved = dare([{"sources": other}, {"sources": sources}])
    assert all(
        torch.equal(moved.tensor(f"model.layers.1.{rest}"), model.tensor(f"model.layers.1.{rest}"))
        for rest in INNER
    )


def one_source(*picks: tuple[str, int, int], **keys: Any) -> dict[str, Any]:
    return {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": m, "layer_range": [a, b]}]} for m, a, b in picks],
        **keys,
    }


def test_whose_config_and_tokenizer() -> None:
    plain = MergeStage.run(MergeBlock.model_validate(one_source(("b", 0, 2), ("a", 0, 3))), MODELS, seed=0)
    assert plain.files == Path("files1")
    block = MergeBlock.model_validate(one_source(("b", 0, 2), ("a", 0, 3), base_model="c"))
    assert block.problems() == []
    based = MergeStage.run(block, MODELS, seed=0)
    assert based.files == Path("files2")
    assert MergeStage.inputs(block) == ("b", "a", "c")
    assert all(torch.equal(tensor, based.tensor(name)) for name, tensor in plain.tensors())


def test_what_is_off_is_left_out() -> None:
    recipe = one_source(("a", 0, 2), ("b", 3, 5), ("c", 1, 2))
    recipe["slices"][1]["enabled"] = False
    model = MergeStage.run(MergeBlock.model_validate(recipe), MODELS, seed=0)
    short = MergeStage.run(MergeBlock.model_validate(one_source(("a", 0, 2), ("c", 1, 2))), MODELS, seed=0)
    assert model.specs == short.specs and model.config == short.config
    assert all(torch.equal(tensor, short.tensor(name)) for name, tensor in model.tensors())
    for piece in recipe["slices"]:
        piece["enabled"] = False
    with pytest.raises(CandidateError, match="no layer") as caught:
        MergeStage.run(MergeBlock.model_validate(recipe), MODELS, seed=0)
    assert caught.value.kind == "invalid_recipe"


def changed(model: Model, change: Any) -> Model:
    tensors = {name: model.tensor(name) for name in model.specs}
    change(tensors)
    return memory_model(tensors, **model.config)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("model.layers.4.mlp.up_proj.weight"), "layer 4 of b lacks mlp.up_proj.weight"),
        (lambda t: t.update({"model.layers.4.mlp.more": torch.ones(1)}), "layer 4 of b has mlp.more"),
        (lambda t: t.update({"model.layers.4.mlp.up_proj.weight": torch.ones(7)}), r"\[7\] in layer 4 of b"),
        (lambda t: t.update({"model.layers.5.mlp.up_proj.weight": torch.ones(6)}), "beyond the 5 layers"),
        (lambda t: t.update({"extra.weight": torch.ones(6)}), "b has extra.weight, which a lacks"),
        (lambda t: t.update({"vision.layers.0.w": torch.ones(6)}), "must have one stack of layers"),
    ],
)
def test_what_does_not_fit_is_an_error(change: Any, text: str) -> None:
    sources = [{"model": "a", "layer_range": [1, 3]}, {"model": "b", "layer_range": [3, 5]}]
    block = MergeBlock.model_validate(
        {"merge_method": "linear", "parameters": {"weight": 1}, "slices": [{"sources": sources}]}
    )
    MergeStage.run(block, MODELS, seed=0)
    models = {**MODELS, "b": changed(MODELS["b"], change)}
    with pytest.raises(CandidateError, match=text):
        MergeStage.run(block, models, seed=0)


def test_a_layer_that_a_model_does_not_have() -> None:
    block = MergeBlock.model_validate(one_source(("a", 0, 2), ("b", 3, 6)))
    with pytest.raises(CandidateError, match="b has 5 layers, not 6"):
        MergeStage.run(block, MODELS, seed=0)


def test_layers_with_other_names() -> None:
    renamed = {name.replace("model.layers", "model.h"): t for name, t in MODELS["b"].tensors()}
    models = {**MODELS, "b": memory_model(renamed, **MODELS["b"].config)}
    with pytest.raises(CandidateError, match=r"different names: model\.layers in a, model\.h in b"):
        MergeStage.run(MergeBlock.model_validate(one_source(("a", 0, 1), ("b", 0, 1))), models, seed=0)
    silent = replace(MODELS["a"], config={})
    with pytest.raises(CandidateError, match="states no number of layers"):
        MergeStage.run(MergeBlock.model_validate(one_source(("a", 0, 1))), {"a": silent}, seed=0)


def test_nothing_is_read_until_it_is_asked_for_and_headers_refuse() -> None:
    read: list[str] = []
    spies = {
        name: replace(model, tensor=lambda t, m=model: (read.append(t), m.tensor(t))[1])
        for name, model in MODELS.items()
    }
    block = MergeBlock.model_validate(one_source(("a", 0, 2), ("b", 3, 5)))
    model = MergeStage.run(block, spies, seed=0)
    headers = MergeStage.outline(block, spies)
    assert read == []
    model.tensor("model.layers.3.mlp.up_proj.weight")
    assert read == ["model.layers.4.mlp.up_proj.weight"]
    with pytest.raises(TypeError, match="only the headers"):
        headers.tensor("model.norm.weight")
