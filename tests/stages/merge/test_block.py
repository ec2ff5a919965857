from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evolve.config.values import Range
from evolve.stages.merge.block import MergeBlock
from evolve.stages.merge.values import choose, resolve, value_problems
from tests.stages.merge.memory import block

RANGE = {"low": 0.1, "high": 0.9}


def problems(method: str, models: dict[str, Any], **keys: Any) -> dict[str, str]:
    return {".".join(map(str, path)): text for path, text in block(method, models, **keys).problems()}


@pytest.mark.parametrize(
    ("method", "models", "keys"),
    [
        ("linear", {"a": {"weight": 1}, "b": {"weight": RANGE}}, {}),
        (
            "linear",
            {"a": {}, "b": None},
            {"parameters": {"weight": 1, "normalize": False, "int8_mask": True}},
        ),
        ("linear", {"a": {"weight": 1}, "b": {"weight": 1}}, {"base_model": "a"}),
        ("slerp", {"a": {}}, {"base_model": "b", "parameters": {"t": [0, 0.5, 1]}}),
        (
            "slerp",
            {"a": {}, "b": {}},
            {"base_model": "b", "parameters": {"t": {"low": 0, "high": 1, "knots": 4}}},
        ),
        (
            "slerp",
            {"a": {}, "b": {}},
            {
                "base_model": "b",
                "parameters": {
                    "t": [
                        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                        {"filter": "mlp", "value": {"low": 0, "high": 1, "knots": 3}},
                        {"value": 0.5},
                    ]
                },
            },
        ),
        ("task_arithmetic", {"a": {"weight": -1.5, "density": 0.5}}, {"base_model": "b"}),
        (
            "ties",
            {"a": {"density": RANGE}, "base": {"weight": 3}},
            {"base_model": "base", "parameters": {"weight": 1}},
        ),
        (
            "dare_ties",
            {"a": {"weight": {"choices": [0, 1]}, "density": [RANGE, 1.0]}},
            {
                "base_model": "b",
                "parameters": {
                    "normalize": {"choices": [False, True]},
                    "lambda": {"low": 0.5, "high": 1.5, "log": True},
                },
            },
        ),
        ("dare_linear", {"a": {"weight": {"filter": "mlp", "value": 1}}}, {"base_model": "b"}),
        ("nuslerp", {"a": {"weight": 1}, "b": {"weight": RANGE}}, {}),
        ("nuslerp", {"a": {"weight": 1}, "b": {"weight": 1}, "c": {}}, {"base_model": "c"}),
        ("multislerp", {"a": {}, "b": {}, "c": {}}, {"parameters": {"weight": 1, "eps": 1e-6}}),
        ("karcher", {"a": {}, "b": {}}, {"parameters": {"max_iter": {"choices": [5, 10]}, "tol": RANGE}}),
        (
            "della",
            {"a": {"weight": 1, "epsilon": RANGE}},
            {"base_model": "b", "parameters": {"density": RANGE}},
        ),
        ("breadcrumbs", {"a": {"weight": 1, "gamma": [0, RANGE]}}, {"base_model": "b"}),
        (
            "sce",
            {"a": {}, "b": {}},
            {"base_model": "c", "parameters": {"select_topk": RANGE, "int8_mask": True}},
        ),
        ("ramplus_tl", {"a": {}, "b": {}}, {"base_model": "c", "parameters": {"r": RANGE, "alpha": RANGE}}),
        (
            "model_stock",
            {"a": {}, "b": {}},
            {"base_model": "c", "parameters": {"filter_wise": {"choices": [False, True]}}},
        ),
        ("nearswap", {"a": {}}, {"base_model": "b", "parameters": {"t": RANGE}}),
        ("arcee_fusion", {"a": {}, "b": {}}, {"base_model": "b"}),
        ("passthrough", {"a": {"scale": 0.5}}, {}),
        ("passthrough", {"a": {}}, {}),
    ],
)
def test_good_blocks(method: str, models: dict[str, Any], keys: dict[str, Any]) -> None:
    assert problems(method, models, **keys) == {}


@pytest.mark.parametrize(
    ("method", "models", "keys", "path", "text"),
    [
        ("tie", {"a": {}}, {}, "merge_method", "did you mean 'ties'?"),
        (
            "linear",
            {"a": {"weight": 1, "wieght": 1}},
            {},
            "models.0.parameters.wieght",
            "did you mean 'weight'?",
        ),
        ("linear", {"a": {"weight": 1}}, {"parameters": {"densty": 1}}, "parameters.densty", "no parameter"),
        ("linear", {"a": {}}, {}, "models.0", "'a' has no weight"),
        (
            "linear",
            {"a": {"weight": 1}, "b": {"int8_mask": True}},
            {},
            "models.1.parameters",
            "'b' has no weight",
        ),
        ("linear", {"a": {"weight": 1}}, {"base_model": "b"}, "base_model", "has no base"),
        ("nuslerp", {"a": {"weight": 1}}, {}, "models", "exactly 2 model(s)"),
        ("karcher", {"a": {"weight": 1}}, {}, "models.0.parameters.weight", "no parameter 'weight'"),
        ("karcher", {"a": {}}, {"parameters": {"max_iter": RANGE}}, "parameters.max_iter", "whole number"),
        ("karcher", {"a": {}}, {"parameters": {"max_iter": 0}}, "parameters.max_iter", "below 1"),
        (
            "della",
            {"a": {"weight": 1, "epsilon": 1.5}},
            {"base_model": "b"},
            "models.0.parameters.epsilon",
            "from 0 to 1",
        ),
        (
            "sce",
            {"a": {}},
            {"base_model": "b", "parameters": {"select_topk": {"low": 0, "high": 2}}},
            "parameters.select_topk",
            "from 0 to 1",
        ),
        ("model_stock", {"a": {}}, {"base_model": "b"}, "models", "at least 2 model(s) beside"),
        ("nearswap", {"a": {}}, {"base_model": "b"}, "merge_method", "needs the parameter t"),
        (
            "nearswap",
            {"a": {}},
            {"base_model": "b", "parameters": {"t": -1}},
            "parameters.t",
            "must not be below 0",
        ),
        ("slerp", {"a": {}}, {"base_model": "b"}, "merge_method", "needs the parameter t"),
        ("slerp", {"a": {}}, {"parameters": {"t": 0.5}}, "merge_method", "needs a base_model"),
        (
            "slerp",
            {"b": {}},
            {"base_model": "b", "parameters": {"t": 0.5}},
            "models",
            "exactly 1 model(s) beside",
        ),
        ("slerp", {"a": {}, "c": {}}, {"base_model": "b", "parameters": {"t": 0.5}}, "models", "got 2"),
        (
            "slerp",
            {"a": {}},
            {"base_model": "b", "parameters": {"t": 1.5}},
            "parameters.t",
            "from 0 to 1, got 1.5",
        ),
        (
            "slerp",
            {"a": {"t": 1}},
            {"base_model": "b", "parameters": {"t": 1}},
            "models.0.parameters.t",
            "move it",
        ),
        ("ties", {"b": {}}, {"base_model": "b"}, "models", "at least 1"),
        (
            "ties",
            {"a": {"weight": 1}, "b": {"weight": RANGE}},
            {"base_model": "b"},
            "models.1.parameters.weight",
            "base",
        ),
        (
            "ties",
            {"a": {"weight": 1, "density": {"low": 0.5, "high": 1.5}}},
            {"base_model": "b"},
            "models.0.parameters.density",
            "from 0 to 1, got 1.5",
        ),
        (
            "ties",
            {"a": {"weight": 1, "density": [{"filter": "mlp", "value": [0.5, {"choices": [0.5, -1.0]}]}]}},
            {"base_model": "b"},
            "models.0.parameters.density.0.value.1",
            "got -1",
        ),
        ("ties", {"a": {"weight": True}}, {"base_model": "b"}, "models.0.parameters.weight", "is a number"),
        (
            "ties",
            {"a": {"weight": {"choices": [True]}}},
            {"base_model": "b"},
            "models.0.parameters.weight",
            "number",
        ),
        (
            "linear",
            {"a": {"weight": 1}},
            {"parameters": {"normalize": 1}},
            "parameters.normalize",
            "true or false",
        ),
        (
            "linear",
            {"a": {"weight": 1}},
            {"parameters": {"normalize": RANGE}},
            "parameters.normalize",
            "choices",
        ),
        (
            "linear",
            {"a": {"weight": 1}},
            {"parameters": {"normalize": [0]}},
            "parameters.normalize.0",
            "filters",
        ),
        (
            "task_arithmetic",
            {"a": {"weight": 1, "density": RANGE}},
            {"base_model": "b"},
            "models.0.parameters.density",
            "no effect",
        ),
        (
            "linear",
            {"a": {"weight": 1}},
            {"parameters": {"weight": RANGE}},
            "parameters.weight",
            "has no effect",
        ),
        (
            "linear",
            {"a": {"weight": [{"value": 1}, {"filter": "mlp", "value": 2}]}},
            {},
            "models.0.parameters.weight.1",
            "never used",
        ),
        (
            "linear",
            {"a": {"weight": 1}},
            {"tokenizer_source": "c"},
            "tokenizer_source",
            "not one of the merged models",
        ),
        (
            "linear",
            {"a": {"weight": 1}},
            {"tokenizer_source": "base"},
            "tokenizer_source",
            "needs a base_model",
        ),
        ("passthrough", {"a": {}, "b": {}}, {}, "models", "exactly 1"),
    ],
)
def test_each_problem_is_found_where_it_is(
    method: str, models: dict[str, Any], keys: dict[str, Any], path: str, text: str
) -> None:
    found = problems(method, models, **keys)
    assert list(found) == [path]
    assert text in found[path]


def test_all_problems_at_once() -> None:
    found = problems(
        "ties",
        {"a": {"wieght": 1, "density": 2}, "b": {"normalize": True}},
        base_model="c",
        parameters={"lamda": 1},
    )
    assert set(found) == {
        "models.0.parameters.wieght",
        "models.0.parameters.density",
        "models.1.parameters.normalize",
        "parameters.lamda",
        "models.0.parameters",
        "models.1.parameters",
    }


def test_a_model_listed_twice() -> None:
    entry = {"model": "a", "parameters": {"weight": 1}}
    (found,) = MergeBlock.model_validate({"merge_method": "linear", "models": [entry, entry]}).problems()
    assert found == (("models", 1, "model"), "'a' is listed twice")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("dtype", "int64", "float32"),
        ("out_dtype", "float64", "float32"),
        ("models", [], "at least 1"),
        ("paramters", {}, "Extra inputs"),
    ],
)
def test_refused_keys(key: str, value: Any, text: str) -> None:
    good = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    assert MergeBlock.model_validate(good).problems() == []
    with pytest.raises(ValidationError) as caught:
        MergeBlock.model_validate({**good, key: value})
    assert caught.value.errors()[0]["loc"][0] == key
    assert text in str(caught.value)


def test_a_dumped_block_loads_again_and_shows_no_refused_keys() -> None:
    first = block(
        "ties", {"a": {"weight": [{"filter": "mlp", "value": RANGE}, {"value": 1}]}}, base_model="b"
    )
    dumped = first.model_dump()
    assert "stack" not in dumped
    assert MergeBlock.model_validate(dumped) == first


def test_choose_takes_the_models_own_value_first_then_the_common_then_the_default() -> None:
    from evolve.stages.merge.base import Param

    param = Param("weight", 9.0)
    own = block("linear", {"a": {"weight": [{"filter": "mlp", "value": 1}]}}).models[0].parameters["weight"]
    assert choose(param, [own, 2.0], "layers.0.mlp.up", 0) == 1
    assert choose(param, [own, 2.0], "layers.0.attn.q", 0) == 2
    assert choose(param, [own, None], "layers.0.attn.q", 0) == 9


def test_filters_are_substrings_and_the_first_match_wins() -> None:
    entries = [
        {"filter": "layers.1", "value": [1, 2]},
        {"filter": "mlp", "value": 3},
        {"filter": "*", "value": 4},
    ]
    value = block("linear", {"a": {"weight": entries}}).models[0].parameters["weight"]
    assert resolve(value, "layers.17.mlp", 0.5) == 1.5
    assert resolve(value, "layers.2.mlp", 0.5) == 3
    assert resolve(value, "norm", 0.5) == 4


def test_whole_ranges_are_checked() -> None:
    from evolve.stages.merge.base import Param

    param = Param("density", 1.0, low=0.0, high=1.0)
    assert value_problems(param, Range(low=0.0, high=1.0)) == []
    assert value_problems(param, Range(low=-0.1, high=1.0)) == [
        ((), "the range must lie from 0 to 1, got -0.1")
    ]
