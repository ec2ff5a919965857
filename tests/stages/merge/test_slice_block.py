"""Slices, modules and stacks as blocks: what is accepted, what is refused where, what a stack stands for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evolve.config.load import load_text
from evolve.space.space import derive
from evolve.stages.merge.block import MergeBlock
from tests.config.text import at, only_problem, problems

RANGE = {"low": 0.1, "high": 0.9}


def source(model: str, first: int = 0, end: int = 2, **parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"model": model, "layer_range": [first, end]}
    return {**found, "parameters": parameters} if parameters else found


def piece(*sources: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"sources": list(sources), **keys}


def found(**keys: Any) -> dict[str, str]:
    block = MergeBlock.model_validate({"merge_method": "linear", **keys})
    return {".".join(map(str, path)): text for path, text in block.problems()}


GOOD: list[dict[str, Any]] = [
    {"slices": [piece(source("a", weight=1))]},
    {"slices": [piece(source("a"), source("b", weight=RANGE), parameters={"weight": [0, 1]})]},
    {"slices": [piece(source("a"))], "parameters": {"weight": 1}},
    {"slices": [piece(source("a"), residual_weight=0.5, scale=RANGE)], "parameters": {"weight": 1}},
    {"modules": {"default": {"models": [{"model": "a"}], "parameters": {"weight": 1}}}},
    {"modules": {"default": {"slices": [piece(source("a"))]}}, "parameters": {"weight": 1}},
    {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [
            piece(source("a"), source("b"), parameters={"t": [0, 1]}),
            piece(source("c"), source("b"), base_model="c", parameters={"t": RANGE}),
        ],
    },
    {
        "merge_method": "slerp",
        "slices": [piece(source("a"), source("b"), base_model="a", parameters={"t": 0.5})],
    },
    {"merge_method": "passthrough", "base_model": "z", "slices": [piece(source("a")), piece(source("b"))]},
    {"merge_method": "passthrough", "slices": [piece(source("a"), enabled={"choices": [False, True]})]},
    {"merge_method": "passthrough", "stack": {"sources": [source("a"), source("b")], "scale": RANGE}},
]


@pytest.mark.parametrize("keys", GOOD)
def test_good_blocks(keys: dict[str, Any]) -> None:
    assert found(**keys) == {}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"slices": []}, "slices", "must not be empty"),
    ({"slices": [piece(source("a"))]}, "slices.0.sources.0", "'a' has no weight"),
    (
        {"slices": [piece(source("a", weight=1, wieght=1))]},
        "slices.0.sources.0.parameters.wieght",
        "'weight'?",
    ),
    (
        {"slices": [piece(source("a", weight=1), parameters={"densty": 1})]},
        "slices.0.parameters.densty",
        "no parameter 'densty'",
    ),
    (
        {"slices": [piece(source("a", weight=1), source("b", 0, 3, weight=1))]},
        "slices.0.sources.1.layer_range",
        "3 layers, and the first source has 2",
    ),
    (
        {"slices": [piece(source("a", 0, 2, weight=1), source("a", 2, 4, weight=1))]},
        "slices.0.sources.1.model",
        "'a' is listed twice; give the model a second name",
    ),
    (
        {"slices": [piece(source("a", normalize=False, weight=1))]},
        "slices.0.sources.0.parameters.normalize",
        "move it to the slice's own parameters",
    ),
    (
        {"slices": [piece(source("a", weight=1), scale=0.0)]},
        "slices.0.scale",
        "greater than 0",
    ),
    (
        {"slices": [piece(source("a", weight=1), scale={"low": 0, "high": 1})]},
        "slices.0.scale",
        "greater than 0",
    ),
    (
        {"merge_method": "ties", "base_model": "b", "slices": [piece(source("a", weight=1))]},
        "slices.0.sources",
        "the base 'b' is missing",
    ),
    (
        {"merge_method": "ties", "slices": [piece(source("a", weight=1))]},
        "merge_method",
        "needs a base_model",
    ),
    (
        {"merge_method": "slerp", "base_model": "a", "slices": [piece(source("a"), source("b"))]},
        "slices.0",
        "needs the parameter t",
    ),
    (
        {"merge_method": "passthrough", "slices": [piece(source("a")), piece(source("a"), source("b"))]},
        "slices.1.sources",
        "exactly 1 model(s), got 2",
    ),
    (
        {"slices": [piece(source("a", weight=1), parameters={"weight": RANGE})]},
        "slices.0.parameters.weight",
        "no effect",
    ),
    (
        {
            "slices": [piece(source("a", weight=1), parameters={"normalize": True})],
            "parameters": {"normalize": {"choices": [False, True]}},
        },
        "parameters.normalize",
        "every slice has a normalize of its own",
    ),
    ({"slices": [piece(source("a", weight=1))], "tokenizer_source": "b"}, "tokenizer_source", "not one of"),
    ({"modules": {}}, "modules", "must not be empty"),
    ({"modules": {"default": {"parameters": {}}}}, "modules.default", "exactly one of models and slices"),
    ({"modules": {"default": {"slices": []}}}, "modules.default.slices", "must not be empty"),
    (
        {"modules": {"text_decoder": {"models": [{"model": "a"}]}}},
        "modules.text_decoder",
        "cannot be merged module by module yet",
    ),
    (
        {"modules": {"default": {"slices": [piece(source("a"))]}}},
        "modules.default.slices.0.sources.0",
        "'a' has no weight",
    ),
    ({"stack": {"sources": [source("a")]}}, "merge_method", "set passthrough, not 'linear'"),
    (
        {"merge_method": "passthrough", "stack": {"sources": [source("a")], "keep_first": 2}},
        "stack",
        "are 3 layers, and the first source has 2",
    ),
    (
        {"merge_method": "passthrough", "stack": {"sources": [source("a", 0, 600)], "repeats": 2}},
        "stack",
        "more than 1000 slices",
    ),
    (
        {"merge_method": "passthrough", "stack": {"sources": [source("a")], "scale": {"low": -1, "high": 1}}},
        "stack",
        "greater than 0",
    ),
]


@pytest.mark.parametrize(("keys", "path", "text"), BAD)
def test_each_problem_is_found_where_it_is(keys: dict[str, Any], path: str, text: str) -> None:
    problem = found(**keys)
    assert list(problem) == [path]
    assert text in problem[path]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "got none of them"),
        ({"models": [{"model": "a"}], "slices": [piece(source("a"))]}, "got models and slices"),
        ({"slices": [piece(source("a"))], "stack": {"sources": [source("a")]}}, "got slices and stack"),
        ({"slices": [{"sources": []}]}, "at least 1"),
        ({"slices": [piece({"model": "a"})]}, "layer_range"),
        ({"slices": [piece(source("a", 2, 2))]}, r"\[first, end\)"),
        ({"slices": [piece(source("a", -1, 2))]}, r"\[first, end\)"),
        ({"slices": [piece({"model": "a", "layer_range": [0, 1, 2]})]}, "at most 2"),
        ({"slices": [piece({"model": "a", "layer_range": [0, 1.5]})]}, "valid integer"),
        ({"slices": [piece({"model": "a", "layer_range": [0, RANGE]})]}, "valid integer"),
        ({"slices": [piece(source("a"), residual_weight=RANGE)]}, "valid number"),
        ({"slices": [piece(source("a"), enabled=1)]}, "true, false"),
        ({"stack": {"sources": []}}, "at least 1"),
        ({"stack": {"sources": [source("a")], "repeat": 2}}, "Extra inputs"),
    ],
)
def test_what_the_schema_refuses(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        MergeBlock.model_validate({"merge_method": "passthrough", **keys})


# What a stack stands for.


def expanded(**keys: Any) -> list[tuple[str, int, int, Any, Any]]:
    block = MergeBlock.model_validate({"merge_method": "passthrough", "stack": keys})
    assert block.problems() == []
    assert block.slices is not None
    rows = []
    for one in block.slices:
        (only,) = one.sources
        enabled = one.enabled if isinstance(one.enabled, bool) else tuple(one.enabled.choices)
        scale = one.scale if isinstance(one.scale, int | float) else (one.scale.low, one.scale.high)
        rows.append((only.model, *only.layer_range, enabled, scale))
    return rows


ON, OFF = (False, True), (True, False)


def test_a_stack_is_all_layers_in_a_row() -> None:
    both = [source("a", 0, 4), source("b", 1, 3)]
    low = (0.5, 1.5)
    assert expanded(sources=both, repeats=2, scale={"low": 0.5, "high": 1.5}) == [
        ("a", 0, 1, True, 1.0),
        ("a", 1, 2, ON, low),
        ("a", 2, 3, ON, low),
        ("b", 1, 2, OFF, low),
        ("b", 2, 3, OFF, low),
        ("a", 1, 2, OFF, low),
        ("a", 2, 3, OFF, low),
        ("b", 1, 2, OFF, low),
        ("b", 2, 3, OFF, low),
        ("a", 3, 4, True, low),
    ]


def test_blocks_of_layers_and_nothing_kept() -> None:
    rows = expanded(
        sources=[source("a", 2, 7), source("b")], block_size=2, keep_first=0, keep_last=0, enabled=True
    )
    assert rows == [
        ("a", 2, 4, True, 1.0),
        ("a", 4, 6, True, 1.0),
        ("a", 6, 7, True, 1.0),
        ("b", 0, 2, True, 1.0),
    ]


STACK = """\
models: {a: models/a, b: models/b}
pipeline:
  - merge:
      merge_method: passthrough
      stack:
        sources:
          - {model: a, layer_range: [0, 3]}
          - {model: b, layer_range: [1, 2]}
        scale: {low: 0.5, high: 1.5}
"""
CONTENTS = {"a": "sha256:a", "b": "sha256:b"}


def test_the_search_starts_at_the_first_model_as_it_is() -> None:
    space = derive(load_text(STACK, "c.yaml"))
    assert [gene.name for gene in space.genes] == [
        "merge.a.layer1.enabled",
        "merge.a.layer1.scale",
        "merge.b.layer1.enabled",
        "merge.b.layer1.scale",
        "merge.a.layer2.scale",
    ]
    recipe = space.recipe(space.centre(), CONTENTS)
    assert recipe.models == {"a": "sha256:a"}
    (stage,) = recipe.pipeline
    assert stage["merge"]["slices"] == [{"sources": [source("a", i, i + 1)]} for i in range(3)]


def test_values_of_what_is_off_do_not_count() -> None:
    space = derive(load_text(STACK, "c.yaml"))
    values = space.centre()
    same = [space.recipe({**values, "merge.b.layer1.scale": scale}, CONTENTS) for scale in (0.5, 1.4)]
    assert same[0] == same[1] == space.recipe(values, CONTENTS)
    on = {**values, "merge.b.layer1.enabled": 0.0}
    other = [space.recipe({**on, "merge.b.layer1.scale": scale}, CONTENTS) for scale in (0.5, 1.4)]
    assert len({*same, *other}) == 3
    assert other[0].models == CONTENTS


def test_the_document_of_a_point_loads_as_its_recipe() -> None:
    from evolve.config.dump import resolved_yaml, to_yaml

    loaded = load_text(STACK, "c.yaml")
    space = derive(loaded)
    values = {**space.centre(), "merge.b.layer1.enabled": 0.0, "merge.b.layer1.scale": 0.75}
    again = derive(load_text(to_yaml(space.document(values)), "d.yaml"))
    assert again.genes == ()
    assert again.recipe({}, CONTENTS) == space.recipe(values, CONTENTS)
    resolved = derive(load_text(resolved_yaml(loaded), "e.yaml"))
    assert resolved.genes == space.genes
    assert resolved.recipe(values, CONTENTS) == space.recipe(values, CONTENTS)


def test_problems_of_a_stack_are_shown_at_the_stack() -> None:
    text = STACK.replace("low: 0.5", "low: 0.0")
    problem = only_problem(text)
    assert problem.where == at(text, "sources:")
    assert problem.path == "pipeline.0.merge.stack"
    text = STACK.replace("model: b,", "model: c,")
    problem = only_problem(text)
    assert problem.where == at(text, "c, layer")
    assert problem.path == "pipeline.0.merge.stack.sources.1.model"


def test_a_recipe_without_any_layer_loads_and_fails_when_it_is_built() -> None:
    from evolve.errors import CandidateError
    from evolve.stages.pipeline import build

    text = STACK.replace("        scale", "        keep_first: 0\n        keep_last: 0\n        scale")
    space = derive(load_text(text, "c.yaml"))
    values = {
        gene.name: float(gene.choices.index(False)) if gene.choices else gene.low for gene in space.genes
    }
    recipe = space.recipe(values, CONTENTS)
    with pytest.raises(CandidateError, match="every slice is off: the model would have no layer") as caught:
        build(recipe, {})
    assert caught.value.kind == "invalid_recipe"


SLICES = """\
models: {a: models/a, b: models/b}
pipeline:
  - merge:
      merge_method: linear
      slices:
        - sources:
            - {model: a, layer_range: [0, 2], parameters: {weight: {low: 0, high: 1, knots: 2}}}
            - {model: b, layer_range: [2, 4], parameters: {weight: {low: 0, high: 1}}}
          parameters: {normalize: {choices: [false, true]}}
        - enabled: {choices: [false, true]}
          scale: {low: 0.5, high: 2.0, log: true}
          sources: [{model: a, layer_range: [1, 3]}]
        - enabled: {choices: [false, true]}
          sources: [{model: a, layer_range: [1, 3], parameters: {weight: {low: 0.5, high: 2}}}]
        - sources: [{model: b, layer_range: [3, 4]}]
      parameters: {weight: {low: 1, high: 2}}
"""


def test_names_of_genes_inside_slices() -> None:
    space = derive(load_text(SLICES, "c.yaml"))
    assert [gene.name for gene in space.genes] == [
        "merge.slice0.a.weight.0",
        "merge.slice0.a.weight.1",
        "merge.slice0.b.weight",
        "merge.slice0.normalize",
        "merge.a.layers1-2.1.enabled",
        "merge.a.layers1-2.1.scale",
        "merge.a.layers1-2.2.enabled",
        "merge.a.layers1-2.2.a.weight",
        "merge.weight",
    ]
    recipe = space.recipe({**space.centre(), "merge.a.layers1-2.1.enabled": 0.0}, CONTENTS)
    (stage,) = recipe.pipeline
    assert [len(one["sources"]) for one in stage["merge"]["slices"]] == [2, 1, 1]
    assert stage["merge"]["slices"][0]["parameters"] == {"normalize": True}


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ("§[2, 4]", "[2, 2]", "slices.0.sources.1.layer_range", "[first, end)"),
        ("§[2, 4]", "[2, 5]", "slices.0.sources.1.layer_range", "3 layers"),
        ("§[2, 4]", "2", "slices.0.sources.1.layer_range", "expected a list"),
        ("{model: §b, layer_range: [2", "{model: c, layer_range: [2", "slices.0.sources.1.model", "no model"),
        (
            "§{model: b, layer_range: [2",
            "{model: b, layer_rang: [2",
            "slices.0.sources.1.layer_range",
            "missing",
        ),
        ("§slices:", "slizes:", "slizes", "did you mean 'slices'"),
        ("§scale: {low", "scales: {low", "slices.1.scales", "did you mean 'scale'"),
    ],
)
def test_mistakes_in_slices_are_shown_where_they_are(old: str, new: str, path: str, words: str) -> None:
    """The mark § stands where the message must point."""
    before, after = old.split("§")
    place = at(SLICES, before + after, offset=len(before))
    text = SLICES.replace(before + after, new)
    found = {problem.path.removeprefix("pipeline.0.merge."): problem for problem in problems(text)}
    assert words in found[path].message
    assert found[path].where == place


def test_layer_range_has_no_place_among_models() -> None:
    text = SLICES[: SLICES.index("      slices:")] + "      models: [{model: a, layer_range: [0, 2]}]\n"
    text += "      parameters: {weight: 1}\n"
    assert "layer_range belongs into slices" in only_problem(text).message
