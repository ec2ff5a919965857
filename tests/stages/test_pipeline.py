"""Wiring with a made-up stage whose result is arithmetic that can be checked by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from evolve.config.values import SearchNumber, StageBlock
from evolve.errors import CandidateError
from evolve.registry import Registry
from evolve.stages import pipeline
from evolve.stages.pipeline import build, check
from evolve.tensors.fused import all_finite
from evolve.types import Recipe
from evolve.weights.model import Model, TensorSpec
from evolve.weights.reader import open_model
from tests.tiny import make_model


def refuse(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} was read")


class SumBlock(StageBlock):
    models: list[str] = Field(min_length=1)
    times: SearchNumber = 1.0


class Sum:
    """Adds models; times 13 is refused."""

    block = SumBlock

    @staticmethod
    def inputs(block: SumBlock) -> tuple[str, ...]:
        return tuple(dict.fromkeys(block.models))

    @staticmethod
    def check(block: SumBlock, models: Any) -> list[tuple[str, str]]:
        assert list(models) == list(Sum.inputs(block))
        return [("times", "13 is unlucky")] if block.times == 13 else []

    @staticmethod
    def outline(block: SumBlock, models: Any) -> Model:
        return replace(next(iter(models.values())), tensor=refuse)

    @staticmethod
    def run(block: SumBlock, models: Any, *, seed: int, memo: Any = None) -> Model:
        noise = block.seed if block.seed is not None else seed
        inputs = list(models.values())
        return replace(
            inputs[0], tensor=lambda name: sum(m.tensor(name) for m in inputs) * float(block.times) + noise
        )


class AddBlock(StageBlock):
    model: str | None = None
    amount: float


class Add:
    """A stage with a ``model``, like cpt."""

    block = AddBlock

    @staticmethod
    def inputs(block: AddBlock) -> tuple[str, ...]:
        return (block.model,)

    @staticmethod
    def check(block: AddBlock, models: Any) -> list[tuple[str, str]]:
        return []

    @staticmethod
    def outline(block: AddBlock, models: Any) -> Model:
        return replace(models[block.model], tensor=refuse)

    @staticmethod
    def run(block: AddBlock, models: Any, *, seed: int, memo: Any = None) -> Model:
        model = models[block.model]
        return replace(model, tensor=lambda name: model.tensor(name) + block.amount)


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    table = {"sum": "tests.stages.test_pipeline:Sum", "add": "tests.stages.test_pipeline:Add"}
    monkeypatch.setattr(pipeline, "STAGES", Registry("stage", table))


def constant(value: float, *, bad: str = "", **values: float) -> Model:
    def tensor(name: str) -> torch.Tensor:
        full = torch.full((2, 3), values.get(name, value))
        if name == bad:
            full[1, 1] = torch.nan
        return full

    specs = {name: TensorSpec((2, 3), "float32") for name in ("w", "v")}
    return Model({"tie_word_embeddings": True}, specs, tensor, Path("/nowhere"))


PARENTS = {"a": constant(1.0), "b": constant(10.0), "c": constant(100.0)}


def recipe(*steps: dict[str, Any], models: Any = PARENTS) -> Recipe:
    return Recipe.make(dict.fromkeys(models, "sha256:0"), list(steps))


def value(model: Model) -> float:
    (number,) = model.tensor("w").unique().tolist()
    return number


def found(*steps: tuple[str, StageBlock], models: Any = PARENTS) -> list[tuple[str, str]]:
    return check(steps, models)


def test_outputs_are_wired_by_name():
    steps = [
        {"sum": {"name": "ab", "models": ["a", "b"]}},
        {"sum": {"name": "abc", "models": ["ab", "c"], "times": 2}},
        {"sum": {"models": ["abc", "ab", "a"]}},
    ]
    assert value(build(recipe(*steps), PARENTS)) == 2 * 111 + 11 + 1


def test_a_stage_without_a_model_takes_the_output_before():
    steps = [{"sum": {"models": ["a", "b"]}}, {"add": {"amount": 0.5}}, {"add": {"amount": 0.25}}]
    assert value(build(recipe(*steps), PARENTS)) == 11.75
    assert found(("sum", SumBlock(models=["a"])), ("add", AddBlock(amount=1))) == []
    alone = {"a": PARENTS["a"]}
    assert value(build(recipe({"add": {"amount": 5}}, models=alone), alone)) == 6
    assert found(("add", AddBlock(amount=1))) == [
        ("pipeline.0.add.model", "say which model it starts from: a, b, c")
    ]


@pytest.mark.parametrize(
    ("enabled", "want"),
    [((True, True), 1 + 5 + 7 + 10), ((False, True), 18), ((True, False), 16), ((False, False), 11)],
)
def test_a_stage_that_is_off_stands_for_its_input(enabled, want):
    steps = [
        {"add": {"name": "one", "model": "a", "amount": 5, "enabled": enabled[0]}},
        {"add": {"name": "two", "amount": 7, "enabled": enabled[1]}},
        {"sum": {"models": ["two", "b"]}},
    ]
    assert value(build(recipe(*steps), PARENTS)) == want


def test_the_last_stage_off_hands_its_input_through():
    off = {"sum": {"models": ["b", "a"], "enabled": False}}
    assert value(build(recipe(off), PARENTS)) == 10
    broken = {**PARENTS, "b": constant(10.0, bad="w")}
    with pytest.raises(CandidateError, match="model 'b' itself"):
        build(recipe(off), broken).tensor("w")


def test_seed_of_the_block_goes_before_that_of_the_search():
    assert value(build(recipe({"sum": {"models": ["a"]}}), PARENTS, seed=3)) == 4
    assert value(build(recipe({"sum": {"models": ["a"], "seed": 7}}), PARENTS, seed=3)) == 8


def test_what_is_computed_is_known_by_what_decides_it(monkeypatch):
    known = {name: replace(model, content=f"sha256:{name}") for name, model in PARENTS.items()}

    def identity(of_search: int = 0, kind: str = "sum", **block: Any) -> str:
        # Without a content of its own, as a stage that computes.
        steps = [{kind: block}]
        made = build(
            Recipe.make({name: one.content for name, one in known.items()}, steps), known, seed=of_search
        )
        assert made.content.startswith("made:")
        return made.content

    for stage in (Sum, Add):
        original = stage.run
        monkeypatch.setattr(
            stage,
            "run",
            staticmethod(lambda *a, _run=original, **k: replace(_run(*a, **k), content="")),
        )
    both = {"models": ["a", "b"]}
    assert identity(**both) == identity(name="ab", **both)
    assert identity(**both) == identity(of_search=3, seed=0, **both)
    assert identity(**both) != identity(of_search=3, **both)
    assert identity(**both) != identity(times=2, **both)
    # What draws nothing has no seed.
    more = {"model": "a", "amount": 1.0}
    monkeypatch.setattr(AddBlock, "draws", classmethod(lambda cls, plain: False))
    assert identity(kind="add", **more) == identity(of_search=3, kind="add", **more)
    assert identity(kind="add", **more) == identity(kind="add", seed=5, **more)
    before = identity(kind="add", **more)
    monkeypatch.setattr(Add, "version", 2, raising=False)
    assert identity(kind="add", **more) != before


def test_a_recipe_without_stages_is_its_model(tmp_path):
    model = open_model(make_model(tmp_path, layers=1))
    built = build(recipe(models=["m"]), {"m": model, "other": PARENTS["a"]})
    assert all(torch.equal(tensor, model.tensor(name)) for name, tensor in built.tensors())
    assert (built.config, built.specs, built.files) == (model.config, model.specs, model.files)
    with pytest.raises(CandidateError, match="has one model, not 3"):
        build(recipe(), PARENTS)


def test_nothing_is_computed_until_it_is_read():
    def explode(name: str) -> torch.Tensor:
        raise AssertionError(name)

    lazy = {"a": replace(PARENTS["a"], tensor=explode)}
    model = build(recipe({"sum": {"models": ["a"]}}, models=lazy), lazy)
    with pytest.raises(AssertionError, match="v"):
        model.tensor("v")


@pytest.mark.parametrize(
    ("steps", "path", "message"),
    [
        (
            [("sum", SumBlock(models=["a", "bb"]))],
            "pipeline.0.sum.models.1",
            r"'bb' is unknown \(did you mean 'b'\?\)",
        ),
        ([("sum", SumBlock(name="a", models=["a"]))], "pipeline.0.sum.name", "'a' is already a model"),
        (
            [("sum", SumBlock(name="x", models=["y"])), ("sum", SumBlock(name="y", models=["x"]))],
            "pipeline.0.sum.models.0",
            "later stage; move that stage up",
        ),
        (
            [("sum", SumBlock(name="x", models=["a"])), ("sum", SumBlock(name="x", models=["x"]))],
            "pipeline.1.sum.name",
            "'x' is already the output of pipeline.0.sum",
        ),
        (
            [("sum", SumBlock(models=["a"])), ("sum", SumBlock(models=["a"]))],
            "pipeline.0.sum",
            "nobody uses the output",
        ),
        (
            [("sum", SumBlock(name="x", models=["a"])), ("add", AddBlock(model="b", amount=1))],
            "pipeline.0.sum",
            "nobody uses the output 'x'",
        ),
        ([("sum", SumBlock(models=["a"], times=13))], "pipeline.0.sum.times", "unlucky"),
    ],
)
def test_mistakes_are_found_by_check_and_by_build(steps, path, message):
    ((where, what),) = check(steps, PARENTS)
    assert where == path
    assert re.search(message, what)
    if "unlucky" in message:
        return
    with pytest.raises(CandidateError, match=message) as caught:
        build(recipe(*({kind: block.model_dump()} for kind, block in steps)), PARENTS)
    assert caught.value.kind == "invalid_recipe"


def test_check_accepts_ranges_and_reports_everything():
    wide = SumBlock.model_validate({"name": "x", "models": ["a"], "times": {"low": 0, "high": 1}})
    switch = AddBlock.model_validate({"amount": 1, "enabled": {"choices": [False, True]}})
    assert found(("sum", wide), ("add", switch)) == []
    problems = found(("sum", SumBlock(models=["q"])), ("sum", SumBlock(models=["r", "a"])))
    assert [path for path, _ in problems] == [
        "pipeline.0.sum.models.0",
        "pipeline.0.sum",
        "pipeline.1.sum.models.0",
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"summ": {"models": ["a"]}}], "unknown stage 'summ'"),
        ([{"sum": {"models": ["a"], "tims": 2}}], r"pipeline\.0\.sum\.tims: Extra inputs"),
        ([{"sum": {"models": []}}], r"pipeline\.0\.sum\.models"),
        (
            [{"sum": {"models": ["a"], "enabled": {"choices": [True, False]}}}],
            "enabled: must be true or false",
        ),
        ([{"sum": {"models": ["a"]}, "add": {"amount": 1}}], "one stage an entry"),
        ([{}], "one stage an entry"),
    ],
)
def test_recipes_that_cannot_be_built(steps, message):
    with pytest.raises(CandidateError, match=message) as caught:
        build(recipe(*steps), PARENTS)
    assert caught.value.kind == "invalid_recipe"


def test_a_recipe_whose_model_is_not_there():
    with pytest.raises(CandidateError, match="needs model 'b'"):
        build(recipe({"sum": {"models": ["a"]}}), {"a": PARENTS["a"]})


def test_a_stage_sees_only_its_inputs_and_the_recipe_only_its_models():
    with pytest.raises(CandidateError, match="'c' is unknown"):
        build(recipe({"sum": {"models": ["c"]}}, models=["a", "b"]), PARENTS)


# --- values that are not finite


def kind_and_message(model: Model, name: str = "w") -> str:
    with pytest.raises(CandidateError) as caught:
        model.tensor(name)
    assert caught.value.kind == "non_finite"
    assert not caught.value.retryable
    return str(caught.value)


def test_a_nan_of_a_parent_names_tensor_and_parent():
    parents = {**PARENTS, "b": constant(10.0, bad="w")}
    model = build(recipe({"sum": {"models": ["a", "b"]}}), parents)
    message = kind_and_message(model)
    assert message.startswith("tensor w: 1 of 6 values are NaN or infinite")
    assert "model 'b' itself" in message
    assert model.tensor("v").unique().tolist() == [11.0]
    assert "model 'b' itself" in kind_and_message(build(recipe(models=["b"]), parents))


def test_an_overflow_names_the_stage():
    steps = [{"sum": {"name": "x", "models": ["a"], "times": 1e39}}, {"add": {"amount": 1}}]
    message = kind_and_message(build(recipe(*steps), PARENTS))
    assert "6 of 6" in message
    assert "made by pipeline.0.sum from finite models" in message


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2]
)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_every_kind_of_bad_value_in_every_float_type(dtype, poison):
    tensor = torch.randn(50)
    tensor[17] = poison
    assert not all_finite(tensor.to(dtype))
    tensor[17], tensor[18] = float("inf"), float("-inf")
    assert not all_finite(tensor.to(dtype))


def test_finite_values_whose_sum_overflows_are_fine():
    assert all_finite(torch.full((100,), 3e38))
    assert all_finite(torch.full((100,), 60000.0, dtype=torch.float16))
    assert all_finite(torch.full((1000,), 3e38, dtype=torch.bfloat16))
    assert all_finite(torch.tensor([2**62, 2**62]))
    assert all_finite(torch.empty(0))
