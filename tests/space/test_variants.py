"""The search's own recipe with a stage switched off, and the same one with other seeds."""

from __future__ import annotations

import pytest

from evolve.space.variants import ablations, all_of, drawing, extension, seeds
from evolve.types import Recipe
from tests.space.stub import add_stub
from tests.space.test_space import recipe_of, space_of

STAGES = """\
models: {base: m/base, math: m/math, prose: m/prose}
pipeline:
  - merge:
      name: adapted
      enabled: {choices: [false, true]}
      merge_method: linear
      models: [{model: base}, {model: prose}]
      parameters: {weight: 1.0}
  - stub:
      name: trained
      model: adapted
      enabled: {choices: [false, true]}
      rate: 0.5
      seed: 11
  - merge:
      merge_method: dare_ties
      enabled: {choices: [false, true]}
      base_model: base
      models:
        - {model: trained, parameters: {weight: {low: 0.0, high: 1.0}, density: 0.5}}
        - {model: math, parameters: {weight: 0.5, density: 0.5}}
      dtype: float32
search: {seed: 7}
"""

ON = {"adapted.enabled": 1, "trained.enabled": 1, "merge.enabled": 1, "merge.trained.weight": 0.25}


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    yield from add_stub(monkeypatch)


def test_without_a_stage_it_is_what_the_search_makes_of_the_switch():
    space = space_of(STAGES)
    whole = recipe_of(space, ON)
    found = ablations(whole, 1)
    assert [one.stage for one in found] == ["adapted", "trained", "merge3"]
    for one, gene in zip(found, ("adapted.enabled", "trained.enabled", "merge.enabled"), strict=True):
        assert [recipe.hash for recipe in one.recipes] == [recipe_of(space, {**ON, gene: 0}).hash]


def test_only_stages_that_draw_get_another_seed():
    whole = recipe_of(space_of(STAGES), ON)
    assert drawing(whole) == ("trained", "merge3")
    found = seeds(whole, 3)
    assert found[0] is whole and len({one.hash for one in found}) == 3
    for by, one in enumerate(found):
        got = [next(iter(stage.values())) for stage in one.pipeline]
        own = [next(iter(stage.values())) for stage in whole.pipeline]
        assert [block["seed"] for block in got] == [7, 11 + by, 7 + by]
        rest = [[{k: v for k, v in block.items() if k != "seed"} for block in each] for each in (got, own)]
        assert rest[0] == rest[1] and one.models == whole.models


def test_what_is_left_has_seeds_of_its_own_where_it_draws():
    found = ablations(recipe_of(space_of(STAGES), ON), 3)
    assert [len(one.recipes) for one in found] == [3, 3, 1]
    assert found[-1].recipes[0].pipeline == [], "a merge that is left out hands on its base"


def test_nothing_is_drawn_and_nothing_is_left_out_of_a_plain_merge():
    merge = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "seed": 0}
    recipe = Recipe.make({"a": "sha256:a", "b": "sha256:b"}, [{"merge": merge}])
    assert drawing(recipe) == () and seeds(recipe, 5) == (recipe,) and ablations(recipe, 5) == ()


def test_a_model_as_it_is():
    recipe = Recipe.make({"a": "sha256:a"}, [])
    assert seeds(recipe, 3) == (recipe,) and ablations(recipe, 3) == ()


def test_the_last_seed_wraps():
    block = {"merge_method": "dare_linear", "models": [], "base_model": "a", "seed": 2**63 - 1}
    recipe = Recipe.make({"a": "sha256:a"}, [{"merge": block}])
    assert [one.pipeline[0]["merge"]["seed"] for one in seeds(recipe, 2)] == [2**63 - 1, 0]


WORDS = """\
models: {base: m/base, math: m/math}
pipeline:
  - merge:
      name: adapted
      enabled: {choices: [false, true]}
      merge_method: linear
      models: [{model: base}, {model: math}]
      parameters: {weight: 1.0}
  - vocab: {name: wide, model: adapted, enabled: {choices: [false, true]}, terms: TERMS, num_new_tokens: 4}
  - stub: {name: trained, model: wide, enabled: {choices: [false, true]}, rate: 0.5}
  - stub: {model: trained, enabled: {choices: [false, true]}, rate: 0.25}
search: {seed: 7}
""".replace("TERMS", f"{{path: t.txt, content: 'sha256:{0:064x}'}}")

ALL_ON = {"adapted.enabled": 1, "wide.enabled": 1, "trained.enabled": 1, "stub.enabled": 1}


def test_the_extension_alone_is_the_recipe_up_to_its_new_tokens():
    """Both are what the search makes of the switches: everything behind off, and the vocabulary too."""
    space = space_of(WORDS)
    found = extension(recipe_of(space, ALL_ON), 3)
    off = {**ALL_ON, "trained.enabled": 0, "stub.enabled": 0}
    assert [one.hash for one in found.alone] == [recipe_of(space, off).hash], "nothing in it draws"
    assert [one.hash for one in found.before] == [recipe_of(space, {**off, "wide.enabled": 0}).hash]
    base = {**ALL_ON, "adapted.enabled": 0}
    (plain,) = extension(recipe_of(space, base), 3).before
    assert plain.pipeline == [] and list(plain.models) == ["base"], "it starts from a parent"
    assert extension(recipe_of(space, {**ALL_ON, "wide.enabled": 0}), 3) is None
    whole = recipe_of(space, off)
    assert [one.hash for one in extension(whole, 3).alone] == [whole.hash]


def test_the_extension_alone_is_built_where_stages_are_left_out():
    whole = recipe_of(space_of(WORDS), ALL_ON)
    new = extension(whole, 2)
    hashes = {one.hash for one in all_of(whole, 2, without=True)}
    assert {one.hash for one in (*new.before, *new.alone)} <= hashes
    assert [one.hash for one in all_of(whole, 2, without=False)] == [one.hash for one in seeds(whole, 2)]
