"""The recipes that a search has to beat: every parent alone, and the plain average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.config.plain import plain
from evolve.registry import STAGES
from evolve.space.pipeline import normal
from evolve.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.load import Loaded

AVERAGE = "average"
"""Name of the plain average; no model may have it."""


def baselines(loaded: Loaded, contents: Mapping[str, str]) -> dict[str, Recipe]:
    """Return name to recipe: each model as it is, and the plain average of what the first merge merges.

    The base of that merge is left out of the average, and a stage's output counts as the model that it was
    made from. With fewer than two models there is no average.
    """
    config = loaded.config
    recipes = {name: Recipe.make({name: contents[name]}, []) for name in config.models}
    experts, settings = _experts(loaded)
    if len(experts) > 1:
        schema = STAGES.load("merge").block
        block = schema.model_validate(
            {
                "merge_method": "linear",
                "models": [{"model": name, "parameters": {"weight": 1.0}} for name in experts],
                **settings,
            }
        )
        stage = {"seed": config.search.seed, **plain(block, defaults=False)}
        models = {name: contents[name] for name in config.models if name in experts}
        recipes[AVERAGE] = Recipe.make(models, [{"merge": normal(stage)}])
    return recipes


def _vocabulary(
    data: Mapping[str, Any], origins: Mapping[str, str], experts: Sequence[str]
) -> dict[str, Any]:
    """Return the ``tokenizer`` of the average: what is said of the base has no meaning without it."""
    if "tokenizer" not in data and "tokenizer_source" not in data:
        return {}
    given = data.get("tokenizer") or {"source": data["tokenizer_source"]}
    source = origins.get(given.get("source", "union"))
    found = {"source": source if source in experts else "union"}
    if "pad_to_multiple_of" in given:
        found["pad_to_multiple_of"] = given["pad_to_multiple_of"]
    return {"tokenizer": found}


def _experts(loaded: Loaded) -> tuple[list[str], dict[str, Any]]:
    """Return the models of the first merge without its base, and the settings of its result."""
    origins: dict[str, str] = {name: name for name in loaded.config.models}
    previous = next(iter(origins))
    for kind, block in loaded.stages:
        data = plain(block)
        inputs = [origins[name] for name in STAGES.load(kind).inputs(block)] or [previous]
        base = origins.get(data.get("base_model", ""))
        if kind == "merge":
            settings = {key: data[key] for key in ("dtype", "out_dtype", "chat_template") if key in data}
            experts = [name for name in dict.fromkeys(inputs) if name != base]
            return experts, {**settings, **_vocabulary(data, origins, experts)}
        previous = inputs[0]
        if block.name:
            origins[block.name] = previous
    return [], {}
