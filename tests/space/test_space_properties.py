"""Properties of random spaces: genes to recipe to document and back, and what a hash depends on."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.config.dump import resolved_yaml, to_yaml
from evolve.config.load import load_text
from evolve.space.space import Space, derive, derive_recipe
from tests.space.test_space import recipe_of

NAMES = ["base", "math", "prose", "ü x"]
METHODS = {
    "linear": (False, {"weight": (0.1, 2.0)}, {"normalize": bool}),
    "task_arithmetic": (True, {"weight": (-1.0, 2.0)}, {"lambda": (0.1, 2.0)}),
    "ties": (True, {"weight": (0.0, 2.0), "density": (0.1, 1.0)}, {"lambda": (0.1, 2.0), "normalize": bool}),
    "dare_linear": (True, {"weight": (0.0, 2.0), "density": (0.1, 1.0)}, {"rescale": bool}),
}


@st.composite
def numbers(draw: st.DrawFn, low: float, high: float, *, knots: bool = False) -> Any:
    kind = draw(st.sampled_from(["number", "range", "step", "choices", *(["knots"] if knots else [])]))
    if kind == "number":
        return draw(st.floats(low, high))
    if kind == "choices":
        return {"choices": draw(st.lists(st.floats(low, high), min_size=1, max_size=4, unique=True))}
    if kind == "step":
        return {"low": low, "high": high, "step": draw(st.sampled_from([0.1, 0.25, 0.3]))}
    found: dict[str, Any] = {"low": low, "high": high}
    if low > 0 and draw(st.booleans()):
        found["log"] = True
    if draw(st.booleans()):
        found["off_below"] = draw(st.floats(low, high, exclude_min=True, exclude_max=True))
    if kind == "knots":
        found["knots"] = draw(st.integers(1, 4))
    return found


@st.composite
def parameters(draw: st.DrawFn, low: float, high: float) -> Any:
    flat = numbers(low, high, knots=True)
    gradient = st.lists(numbers(low, high), min_size=1, max_size=3)
    some = flat | gradient
    if draw(st.integers(0, 3)):
        return draw(some)
    filters = draw(st.lists(st.sampled_from(["mlp", "self_attn", "norm"]), max_size=2, unique=True))
    return [*({"filter": name, "value": draw(some)} for name in filters), {"value": draw(some)}]


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    pipeline: list[dict[str, Any]] = []
    count = draw(st.integers(1, 3))
    for position in range(count):
        method = draw(st.sampled_from(sorted(METHODS)))
        based, per_model, shared = METHODS[method]
        previous = [f"out{position - 1}"] if position else []
        models = draw(st.permutations(NAMES[1:]))[: draw(st.integers(2, 3))]
        block: dict[str, Any] = (
            {"name": f"out{position}"} if position < count - 1 or draw(st.booleans()) else {}
        )
        enabled = draw(st.sampled_from([None, True, False, {"choices": [False, True]}]))
        if enabled is not None:
            block["enabled"] = enabled
        block["merge_method"] = method
        if based:
            block["base_model"] = "base"
        block["models"] = [
            {
                "model": name,
                "parameters": {key: draw(parameters(*bounds)) for key, bounds in per_model.items()},
            }
            for name in [*previous, *models]
        ]
        block["parameters"] = {
            key: draw(
                st.sampled_from([True, {"choices": [True, False]}]) if bounds is bool else parameters(*bounds)
            )
            for key, bounds in shared.items()
        }
        if draw(st.booleans()):
            block["seed"] = draw(st.integers(0, 99))
        pipeline.append({"merge": block})
    models = {name: f"models/{name}" for name in NAMES}
    return {
        "name": "random",
        "models": models,
        "pipeline": pipeline,
        "search": {"seed": draw(st.integers(0, 9))},
    }


def draw_values(draw: Any, space: Space) -> dict[str, float]:
    return {
        gene.name: float(draw(st.integers(0, int(gene.high))))
        if gene.choices is not None
        else draw(st.floats(gene.low, gene.high))
        for gene in space.genes
    }


def is_on(space: Space, values: dict[str, float], index: int) -> bool:
    enabled = space.loaded.stages[index][1].enabled
    if isinstance(enabled, bool):
        return enabled
    return values[f"{space.loaded.stages[index][1].name or 'merge'}.enabled"] == 1.0


@settings(max_examples=60, deadline=None)
@given(configs(), st.data())
def test_genes_to_recipe_to_document_and_back(config: dict[str, Any], data: st.DataObject) -> None:
    loaded = load_text(to_yaml(config), "c.yaml")
    assert load_text(resolved_yaml(loaded), "c.yaml").config == loaded.config
    space = derive(loaded)
    names = [gene.name for gene in space.genes]
    assert len(set(names)) == len(names)
    values = draw_values(data.draw, space)
    recipe = recipe_of(space, values)
    # No range, no default, no NaN is left, and the text is canonical.
    assert "low" not in recipe.text and "choices" not in recipe.text and "enabled" not in recipe.text
    # What is exported is a config without ranges, and the same recipe.
    document = space.document(values)
    exported = load_text(to_yaml(document), "exported.yaml")
    assert recipe_of(derive_recipe(exported), {}) == recipe
    assert load_text(resolved_yaml(exported), "again.yaml").config == exported.config
    # The same config through YAML again has the same genes.
    assert derive(load_text(resolved_yaml(loaded), "c.yaml")).genes == space.genes


@settings(max_examples=60, deadline=None)
@given(configs(), st.data())
def test_exactly_the_genes_that_take_effect_change_the_hash(
    config: dict[str, Any], data: st.DataObject
) -> None:
    space = derive(load_text(to_yaml(config), "c.yaml"))
    values = draw_values(data.draw, space)
    recipe = recipe_of(space, values)
    on = [is_on(space, values, index) for index in range(len(space.loaded.stages))]
    # The oracle: the result is the output of the last stage that is on, if every later one hands it through.
    # In these pipelines stage i reads stage i-1, and one that is off hands on its base or its first model.
    effective = set()
    index = len(on) - 1
    while index >= 0:
        if on[index]:
            effective.update(position for position in range(index + 1) if on[position])
            # A stage that is off below cuts the chain where it hands on its base instead of the stage before.
            for position in range(index - 1, 0, -1):
                block = space.loaded.stages[position][1]
                if not on[position] and getattr(block, "base_model", None) is not None:
                    effective = {one for one in effective if one > position}
                    break
            break
        if getattr(space.loaded.stages[index][1], "base_model", None) is not None:
            break
        index -= 1
    for slot in space.slots:
        if slot.path == ("enabled",):
            continue
        for gene in slot.genes:
            other = data.draw(st.sampled_from([gene.low, gene.high, gene.centre()]))
            changed = recipe_of(space, {**values, gene.name: other})
            same = gene.decode(other) == gene.decode(values[gene.name])
            assert (changed == recipe) == (same or slot.stage not in effective), gene.name
