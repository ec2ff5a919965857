"""The same recipe again: with other seeds, without one of its stages, or up to its new tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from evolve.registry import STAGES
from evolve.space.pipeline import Filled, effect
from evolve.types import Recipe

_SEEDS = 2**63


@dataclass(frozen=True)
class Ablation:
    """A recipe without one of its stages.

    Attributes:
        stage: The stage that is left out: its name, or its kind, numbered where there are several.
        recipes: What is left, with one seed or more, the winner's own first. A stage that is left out hands
            on what it was given.
    """

    stage: str
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True)
class Extension:
    """What a recipe does up to its last stage ``vocab``: new tokens that nothing behind it has trained.

    Attributes:
        before: What the stage was given, with one seed or more; a parent as it is where it starts from one.
        alone: The same with the new tokens, likewise.
    """

    before: tuple[Recipe, ...]
    alone: tuple[Recipe, ...]


def drawing(recipe: Recipe) -> tuple[str, ...]:
    """Return the labels of the stages whose result depends on a seed."""
    return tuple(
        label
        for label, (kind, block) in zip(_labels(recipe), _stages(recipe), strict=True)
        if _draws(kind, block)
    )


def seeds(recipe: Recipe, count: int) -> tuple[Recipe, ...]:
    """Return a recipe with ``count`` seeds: itself, then every stage that draws with its seed plus 1, 2, ...

    Where nothing is drawn it is the recipe alone.
    """
    if not drawing(recipe):
        return (recipe,)
    return (recipe, *(_moved(recipe, by) for by in range(1, count)))


def ablations(recipe: Recipe, count: int) -> tuple[Ablation, ...]:
    """Return a recipe of several stages without each of them, each with ``count`` seeds."""
    stages = _stages(recipe)
    if len(stages) < 2:
        return ()
    return tuple(
        Ablation(label, seeds(_rest(recipe, left_out=index), count))
        for index, label in enumerate(_labels(recipe))
    )


def extension(recipe: Recipe, count: int) -> Extension | None:
    """Return a recipe up to its last stage ``vocab``, each with ``count`` seeds; None where it has none."""
    places = [index for index, (kind, _) in enumerate(_stages(recipe)) if kind == "vocab"]
    if not places:
        return None
    before = _rest(recipe, until=places[-1] + 1, left_out=places[-1])
    return Extension(seeds(before, count), seeds(_rest(recipe, until=places[-1] + 1), count))


def all_of(recipe: Recipe, count: int, *, without: bool) -> list[Recipe]:
    """Return a recipe with ``count`` seeds, and where asked its ablations and its extension alone."""
    found = list(seeds(recipe, count))
    if without:
        found += [one for ablation in ablations(recipe, count) for one in ablation.recipes]
        if (new := extension(recipe, count)) is not None:
            found += [*new.before, *new.alone]
    return found


def _stages(recipe: Recipe) -> list[tuple[str, dict[str, Any]]]:
    return [next(iter(entry.items())) for entry in recipe.pipeline]


def _labels(recipe: Recipe) -> list[str]:
    stages = _stages(recipe)
    kinds = Counter(kind for kind, _ in stages)
    return [
        block.get("name") or (kind if kinds[kind] == 1 else f"{kind}{place}")
        for place, (kind, block) in enumerate(stages, start=1)
    ]


def _draws(kind: str, block: dict[str, Any]) -> bool:
    return STAGES.load(kind).block.draws(block)


def _moved(recipe: Recipe, by: int) -> Recipe:
    pipeline = [
        {kind: {**block, "seed": (block["seed"] + by) % _SEEDS} if _draws(kind, block) else block}
        for kind, block in _stages(recipe)
    ]
    return Recipe.make(recipe.models, pipeline)


def _rest(recipe: Recipe, *, until: int | None = None, left_out: int | None = None) -> Recipe:
    """Return what is left of a recipe: its first ``until`` stages, the one at ``left_out`` switched off."""
    filled = []
    for index, (kind, block) in enumerate(_stages(recipe)[:until]):
        plain = {**block, "enabled": False} if index == left_out else block
        filled.append(Filled(kind, STAGES.load(kind).block.model_validate(plain), plain))
    # The order of the models is that of the recipe's text; it only matters to a stage that names none,
    # and a recipe's stages all do.
    models = recipe.models
    kept, pipeline = effect(filled, list(models), seed=0)
    return Recipe.make({name: models[name] for name in kept}, pipeline)
