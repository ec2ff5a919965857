from __future__ import annotations

import json

from evolve.config.load import Loaded, load_text
from evolve.space.baselines import AVERAGE, baselines
from evolve.space.space import derive
from tests.space.test_space import DESIGN


def recipes(loaded: Loaded) -> dict[str, dict[str, object]]:
    contents = {name: f"sha256:{name}" for name in loaded.config.models}
    return {name: json.loads(recipe.text) for name, recipe in baselines(loaded, contents).items()}


def test_every_model_alone_and_the_average_without_the_base() -> None:
    found = recipes(
        load_text(
            DESIGN.partition("  - merge:\n      name")[0]
            + """\
  - merge:
      merge_method: ties
      base_model: base
      dtype: bfloat16
      models:
        - {model: base}
        - {model: math, parameters: {weight: {low: 0, high: 1}}}
        - {model: prose, parameters: {weight: 1}}
search: {seed: 3}
""",
            "c.yaml",
        )
    )
    assert list(found) == ["base", "math", "prose", AVERAGE]
    assert found["math"] == {"models": {"math": "sha256:math"}, "pipeline": []}
    block = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1}} for name in ("math", "prose")],
        "dtype": "bfloat16",
        "seed": 3,
    }
    assert found[AVERAGE] == {
        "models": {"math": "sha256:math", "prose": "sha256:prose"},
        "pipeline": [{"merge": block}],
    }


def test_the_average_is_the_recipe_that_a_person_would_write() -> None:
    text = """\
models: {a: x, b: y}
pipeline:
  - merge:
      merge_method: linear
      models: [{model: a, parameters: {weight: WEIGHT}}, {model: b, parameters: {weight: 1}}]
"""
    contents = {"a": "sha256:1", "b": "sha256:2"}
    average = baselines(load_text(text.replace("WEIGHT", "{low: 0, high: 2}"), "c"), contents)[AVERAGE]
    space = derive(load_text(text.replace("WEIGHT", "{low: 0, high: 2}"), "c"))
    # Found by the search too, it is not scored twice.
    assert space.recipe({"merge.a.weight": 1.0}, contents) == average
    assert derive(load_text(text.replace("WEIGHT", "1"), "c")).recipe({}, contents) == average


def test_no_average_of_less_than_two() -> None:
    found = recipes(load_text(DESIGN.replace("enabled: {choices: [false, true]}", "enabled: true"), "c.yaml"))
    assert list(found) == ["base", "math", "prose"]


def test_the_average_has_the_vocabulary_of_the_merge_as_far_as_it_goes_without_the_base() -> None:
    text = """\
models: {base: x, math: y, prose: z}
pipeline:
  - merge:
      merge_method: ties
      base_model: base
      models:
        - {model: math, parameters: {weight: 1}}
        - {model: prose, parameters: {weight: 1}}
      chat_template: chatml
"""
    cases = {
        "tokenizer_source: base": {"source": "union"},
        "tokenizer_source: prose": {"source": "prose"},
        "tokenizer: {source: base, pad_to_multiple_of: 8}": {"source": "union", "pad_to_multiple_of": 8},
        "tokenizer: {tokens: {<x>: {source: base}}}": {"source": "union"},
        "": None,
    }
    for line, expected in cases.items():
        loaded = load_text(text + (f"      {line}\n" if line else ""), "c.yaml")
        ((_, block),) = recipes(loaded)[AVERAGE]["pipeline"][0].items()
        assert block["chat_template"] == "chatml"
        tokenizer = block.get("tokenizer")
        assert (None if tokenizer is None else {"source": "union", **tokenizer}) == expected
