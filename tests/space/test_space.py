from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from evolve.config.dump import to_yaml
from evolve.config.load import load_text
from evolve.errors import ConfigError
from evolve.space.space import Space, derive, derive_recipe, derive_search
from tests.config.text import at

if TYPE_CHECKING:
    from evolve.types import Recipe

DESIGN = """\
models: {base: models/base, math: models/math, prose: models/prose}
pipeline:
  - merge:
      name: adapted
      enabled: {choices: [false, true]}
      merge_method: task_arithmetic
      base_model: base
      models: [{model: prose, parameters: {weight: {low: 0.0, high: 1.0}}}]
  - merge:
      merge_method: dare_ties
      base_model: base
      models:
        - {model: adapted, parameters: {weight: 0.5, density: 0.5}}
        - model: math
          parameters:
            weight: {low: 0.0, high: 1.5, knots: 5}
            density: {low: 0.2, high: 1.0, step: 0.3}
        - model: prose
          parameters:
            weight:
              - {filter: self_attn, value: [0.1, {low: 0.0, high: 1.0}, {low: 0.0, high: 2.0}]}
              - {value: {low: 0.0, high: 1.5, knots: 2}}
            density: {choices: [0.25, 1]}
      parameters: {lambda: {low: 0.5, high: 1.5}, rescale: {choices: [true, false]}}
      dtype: bfloat16
search: {seed: 7}
"""


def space_of(text: str) -> Space:
    return derive(load_text(text, "c.yaml"))


def recipe_of(space: Space, values: dict[str, float]) -> Recipe:
    return space.recipe(values, {name: f"sha256:{name}" for name in space.loaded.config.models})


def test_names_are_readable_and_in_the_order_of_the_config() -> None:
    assert [gene.name for gene in space_of(DESIGN).genes] == [
        "adapted.enabled",
        "adapted.prose.weight",
        *(f"merge.math.weight.{knot}" for knot in range(5)),
        "merge.math.density",
        "merge.prose.weight.self_attn.1",
        "merge.prose.weight.self_attn.2",
        "merge.prose.weight.rest.0",
        "merge.prose.weight.rest.1",
        "merge.prose.density",
        "merge.lambda",
        "merge.rescale",
    ]


def test_genes_have_the_bounds_of_the_config() -> None:
    genes = {gene.name: gene for gene in space_of(DESIGN).genes}
    density = genes["merge.math.density"]
    assert (density.low, density.high, density.step) == (0.2, 0.8, 0.3)
    assert genes["merge.prose.density"].choices == (0.25, 1)
    assert genes["adapted.enabled"].choices == (False, True)
    assert genes["adapted.enabled"].integer and not genes["merge.lambda"].integer
    assert (genes["merge.lambda"].low, genes["merge.lambda"].high) == (0.5, 1.5)


def test_the_recipe_of_the_centre_is_what_a_person_would_write() -> None:
    space = space_of(DESIGN)
    recipe = recipe_of(space, space.centre())
    assert recipe.models == {"base": "sha256:base", "math": "sha256:math", "prose": "sha256:prose"}
    first, second = recipe.pipeline
    assert first == {
        "merge": {
            "name": "adapted",
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": "prose", "parameters": {"weight": 0.5}}],
            "seed": 7,
        }
    }
    models = second["merge"]["models"]
    assert models[1]["parameters"] == {"weight": [0.75] * 5, "density": 0.5}
    assert models[2]["parameters"]["weight"] == [
        {"filter": "self_attn", "value": [0.1, 0.5, 1]},
        {"value": [0.75, 0.75]},
    ]
    assert second["merge"]["parameters"] == {"lambda": 1, "rescale": False}
    assert second["merge"]["dtype"] == "bfloat16"


def test_a_stage_that_is_off_is_its_input_and_its_genes_do_not_count() -> None:
    space = space_of(DESIGN)
    off = {**space.centre(), "adapted.enabled": 0.0}
    recipe = recipe_of(space, off)
    assert len(recipe.pipeline) == 1
    assert recipe.pipeline[0]["merge"]["models"][0]["model"] == "base"
    assert recipe_of(space, {**off, "adapted.prose.weight": 0.9}) == recipe
    assert recipe_of(space, {**off, "merge.lambda": 0.9}).hash != recipe.hash
    on = space.centre()
    assert recipe_of(space, {**on, "adapted.prose.weight": 0.9}).hash != recipe_of(space, on).hash


def test_a_last_stage_that_is_off_leaves_one_model() -> None:
    text = DESIGN.replace(
        "merge_method: dare_ties", "enabled: {choices: [false, true]}\n      merge_method: dare_ties"
    )
    space = space_of(text)
    recipe = recipe_of(space, {**space.centre(), "merge.enabled": 0.0})
    # Its base goes on, and the first stage, on which nothing depends any more, is not built.
    assert json.loads(recipe.text) == {"models": {"base": "sha256:base"}, "pipeline": []}


def test_one_effect_has_one_hash_however_it_is_written() -> None:
    plain = """\
models: {a: x, b: y, unused: z}
pipeline:
  - merge:
      merge_method: linear
      models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]
"""
    spellings = [
        plain,
        plain.replace("weight: 1}", "weight: 1.0}").replace("weight: 2", "weight: 2e0"),
        plain.replace("merge_method", "name: result\n      enabled: true\n      seed: 0\n      merge_method"),
        plain.replace(", unused: z", ""),
        plain.replace("merge_method", "parameters: {}\n      merge_method"),
        "name: other\n" + plain.replace("a: x", "a: elsewhere/x"),
        plain + "engine: inline\n",
    ]
    hashes = {recipe_of(space_of(text), {}).hash for text in spellings}
    assert len(hashes) == 1
    different = [
        plain.replace("weight: 2", "weight: 2.0000000000000004"),
        plain.replace("merge_method", "dtype: float16\n      merge_method"),
        plain.replace("merge_method", "seed: 1\n      merge_method"),
        plain + "search: {seed: 1}\n",
    ]
    # The last two have one effect.
    assert len({recipe_of(space_of(text), {}).hash for text in different} | hashes) == 4


def test_contents_count_and_paths_do_not() -> None:
    space = space_of(DESIGN)
    values = space.centre()
    contents = {"base": "sha256:1", "math": "sha256:2", "prose": "sha256:3"}
    assert space.recipe(values, contents) != space.recipe(values, {**contents, "math": "sha256:4"})
    assert "models/" not in space.recipe(values, contents).text


def test_bad_values_are_refused() -> None:
    space = space_of(DESIGN)
    values = space.centre()
    for wrong in (math.nan, math.inf, 2.0):
        with pytest.raises(ValueError, match=r"merge\.lambda"):
            recipe_of(space, {**values, "merge.lambda": wrong})
    del values["merge.lambda"]
    with pytest.raises(ValueError, match=r"no value for the gene 'merge\.lambda'"):
        recipe_of(space, values)


def test_params_are_what_people_read() -> None:
    space = space_of(DESIGN)
    params = space.params({**space.centre(), "adapted.enabled": 0.0, "merge.prose.density": 1.0})
    assert params["adapted.enabled"] is False
    assert params["merge.prose.density"] == 1
    assert params["merge.lambda"] == 1.0


def test_the_key_is_that_of_the_genes() -> None:
    key = space_of(DESIGN).key
    assert space_of("name: x\n" + DESIGN.replace("dtype: bfloat16", "dtype: float16")).key == key
    assert space_of(DESIGN.replace("high: 1.5}, rescale", "high: 1.6}, rescale")).key != key


def test_names_stay_unique_in_awkward_configs() -> None:
    text = """\
models: {m: a, m.weight: b, n: c}
pipeline:
  - merge:
      name: merge2
      merge_method: linear
      models:
        - {model: m, parameters: {weight: {low: 0, high: 1, knots: 2}}}
        - {model: m.weight, parameters: {weight: [{filter: '0', value: {low: 0, high: 1}}, {value: 1}]}}
  - merge:
      name: merge
      merge_method: linear
      models:
        - {model: merge2, parameters: {weight: {low: 0, high: 1}}}
        - model: n
          parameters: {weight: [{filter: q, value: {low: 0, high: 1}}, {filter: q, value: {low: 0, high: 2}}]}
      parameters: {weight: 1}
  - merge:
      merge_method: linear
      models: [{model: merge, parameters: {weight: {low: 0, high: 1}}}, {model: n, parameters: {weight: 1}}]
"""
    names = [gene.name for gene in space_of(text).genes]
    assert len(set(names)) == len(names) == 7
    assert names[-1] == "merge3.merge.weight"


def test_recipes_and_searches_are_told_apart() -> None:
    text = DESIGN.replace("{choices: [false, true]}", "true")
    with pytest.raises(ConfigError) as caught:
        derive_recipe(load_text(text, "c.yaml"))
    assert len(caught.value.problems) == 9
    where = at(text, "prose, parameters: {weight: {low", offset=len("prose, parameters: {weight: "))
    assert str(caught.value.problems[0]).startswith(
        f"{where}: pipeline.0.merge.models.0.parameters.weight: a range"
    )
    fixed = load_text(
        "models: {a: x}\npipeline: [{merge: {merge_method: passthrough, models: [{model: a}]}}]", "c"
    )
    assert derive_recipe(fixed).genes == ()
    with pytest.raises(ConfigError) as caught:
        derive_search(fixed)
    messages = [problem.message for problem in caught.value.problems]
    assert "evolve build" in messages[0] and "tasks" in messages[1]
    score = "score: {tasks: [{task: t, metric: acc}]}\n"
    assert derive_search(load_text(DESIGN + score, "c.yaml")).genes


# A stage with a single input and whole numbers, as the later stages have.


@pytest.mark.usefixtures("stub_stage")
def test_whole_numbers_are_whole_and_losses_go_by_their_function() -> None:
    space = space_of("""\
models: {a: x}
pipeline:
  - stub:
      epochs: {low: 1, high: 6, step: 2}
      losses:
        - {function: kl, weight: {low: 0, high: 1}}
        - {function: ce}
        - {function: kl, weight: {choices: [1, 2]}}
""")
    assert [gene.name for gene in space.genes] == [
        "stub.epochs",
        "stub.losses.kl.0.weight",
        "stub.losses.kl.2.weight",
    ]
    assert space.genes[0].choices == (1, 3, 5)
    block = recipe_of(space, {**space.centre(), "stub.epochs": 0.0}).pipeline[0]["stub"]
    assert block["epochs"] == 1 and type(block["epochs"]) is int
    # 3 is the default: written or not, by hand or by the search, the recipe is the same.
    found = recipe_of(space, {**space.centre(), "stub.epochs": 1.0})
    assert "epochs" not in found.pipeline[0]["stub"]
    document = load_text(to_yaml(space.document({**space.centre(), "stub.epochs": 1.0})), "d.yaml")
    assert recipe_of(derive_recipe(document), {}) == found


@pytest.mark.usefixtures("stub_stage")
def test_whole_number_ranges_are_checked() -> None:
    for wrong, words in [
        ("{low: 0.5, high: 2}", "low must be a whole number"),
        ("{low: 0, high: 5, step: 0.5}", "step must be a whole number"),
        ("{low: 1, high: 8, log: true}", "choices"),
        ("{low: 1, high: 1000000}", "larger step"),
        ("{choices: [1, 2.5]}", "whole number"),
        ("{low: 1, high: 3, knots: 2}", "knots"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_text(f"models: {{a: x}}\npipeline: [{{stub: {{epochs: {wrong}}}}}]", "c.yaml")


CHAIN = """\
models: {a: x}
pipeline:
  - stub: {enabled: {choices: [false, true]}, rate: 1}
  - stub: {enabled: {choices: [false, true]}, rate: 2}
  - stub: {name: third, enabled: {choices: [false, true]}, rate: 3}
  - stub: {model: third, enabled: {choices: [false, true]}, rate: 4}
"""


@pytest.mark.usefixtures("stub_stage")
def test_a_chain_closes_over_what_is_off() -> None:
    space = space_of(CHAIN)
    names = [gene.name for gene in space.genes]
    assert names == ["stub.enabled", "stub2.enabled", "third.enabled", "stub3.enabled"]
    for bits in range(16):
        on = [bits >> place & 1 for place in range(4)]
        recipe = recipe_of(space, dict(zip(names, map(float, on), strict=True)))
        blocks = [stage["stub"] for stage in recipe.pipeline]
        # The oracle: follow the input of each stage back to the model.
        assert [block["rate"] for block in blocks] == [place + 1 for place in range(4) if on[place]]
        before = "a"
        for block in blocks:
            assert block["model"] == before
            before = block.get("name", "the result")
        assert recipe.models == {"a": "sha256:a"}


@pytest.mark.usefixtures("stub_stage")
def test_the_switched_stages_of_a_point() -> None:
    space = space_of(CHAIN)
    assert [(name, gene.name) for name, gene in space.switches().items()] == [
        ("stub", "stub.enabled"),
        ("stub2", "stub2.enabled"),
        ("third", "third.enabled"),
        ("stub3", "stub3.enabled"),
    ]
    names = list(space.switches())
    for bits in range(16):
        on = [bits >> place & 1 for place in range(4)]
        values = {f"{name}.enabled": float(value) for name, value in zip(names, on, strict=True)}
        found = space.active(values)
        assert found == {name for name, value in zip(names, on, strict=True) if value}


def test_a_stage_that_changes_nothing_is_not_active() -> None:
    text = DESIGN.replace(
        "merge_method: dare_ties", "enabled: {choices: [false, true]}\n      merge_method: dare_ties"
    )
    space = space_of(text)
    both = {**space.centre(), "adapted.enabled": 1.0, "merge.enabled": 1.0}
    assert space.active(both) == {"adapted", "merge"}
    # The last stage hands its base on, which needs no `adapted`.
    assert space.active({**both, "merge.enabled": 0.0}) == frozenset()
    assert space_of(DESIGN.replace("enabled: {choices: [false, true]}", "enabled: true")).switches() == {}
    assert space_of(DESIGN.replace("{choices: [false, true]}", "{choices: [true]}")).switches() == {}


@pytest.mark.usefixtures("stub_stage")
def test_the_first_stage_must_name_its_model_where_there_are_several() -> None:
    with pytest.raises(ConfigError, match="add `model: NAME`"):
        load_text("models: {a: x, b: y}\npipeline: [{stub: {}}]", "c.yaml")


# Random spaces.
