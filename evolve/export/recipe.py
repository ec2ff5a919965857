"""A recipe as a config file: the same schema with the ranges filled in, and the models' original names."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from evolve import __version__
from evolve.config.dump import to_yaml
from evolve.errors import ConfigError, Problem
from evolve.weights.location import PLUS, pinned, places

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.types import Parent, Recipe, Training

_ORDER = (
    "name",
    "model",
    "enabled",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "sources",
    "layer_range",
    "filter",
    "value",
    "parameters",
)
"""Keys that come first in a block; the others follow in alphabetical order."""


def source_of(parent: Parent) -> str:
    """Return what names the parent anywhere: a folder as it was written, or a hub id with its revision.

    So is each adapter behind a ``+``.
    """
    return PLUS.join(pinned(place, commit) for place, commit in places(parent))


def recipe_document(
    recipe: Recipe,
    parents: Mapping[str, Parent],
    *,
    name: str = "",
    score: ScoreConfig | None = None,
    training: Sequence[Training] = (),
) -> dict[str, Any]:
    """Return the config that builds ``recipe``.

    Args:
        recipe: All values fixed.
        parents: Name to parent, at least those that the recipe uses.
        name: Name of the config, or "" for none.
        score: How it was scored; kept so that `evolve eval --config` works with the file.
        training: What its training stages showed: a text that a teacher wrote is named by its content.
    """
    document: dict[str, Any] = {"name": name} if name else {}
    document["models"] = {model: source_of(_parent(parents, model)) for model in recipe.models}
    document["pipeline"] = [_ordered(stage) for stage in written_down(recipe.pipeline, training)] or [
        _copy_of(recipe)
    ]
    if score is not None:
        document["score"] = score.model_dump(mode="json", exclude_defaults=True)
    return document


def recipe_yaml(
    recipe: Recipe,
    parents: Mapping[str, Parent],
    *,
    name: str = "",
    score: ScoreConfig | None = None,
    notes: Iterable[str] = (),
    training: Sequence[Training] = (),
) -> str:
    """Return the config file that builds ``recipe``, with a comment that says where it comes from.

    Args:
        recipe: All values fixed.
        parents: Name to parent.
        name: Name of the config.
        score: How it was scored.
        notes: Lines for the comment, such as the scores.
        training: See :func:`recipe_document`.
    """
    lines = [f"recipe {recipe.hash}, written by evolve {__version__}", *notes, "models by content:"]
    lines += [f"  {model}: {content}" for model, content in recipe.models.items()]
    document = recipe_document(recipe, parents, name=name, score=score, training=training)
    return comment(lines) + to_yaml(document)


def written_down(pipeline: list[dict[str, Any]], training: Sequence[Training]) -> list[dict[str, Any]]:
    """Return the stages with the content of each text that a teacher behind an API wrote.

    A server asked again may answer something else. A stage is known by its name, else by its kind; where
    some stages of one name have shown nothing, nobody can say which, and none of them is filled in.
    """
    found = copy.deepcopy(pipeline)
    asked: dict[str, list[dict[str, Any]]] = {}
    for stage in found:
        ((kind, block),) = stage.items()
        asked.setdefault(block.get("name") or kind, []).append(block)
    for label, blocks in asked.items():
        shown = [one for one in training if one.stage == label]
        for block, one in zip(blocks, shown, strict=False):
            if len(shown) == len(blocks) and one.written and isinstance(block.get("generate"), dict):
                block["generate"]["content"] = one.written
    return found


def comment(lines: Iterable[str]) -> str:
    """Return a YAML comment. Line breaks inside a line cannot end it."""
    return "".join(f"# {' '.join(line.split()) if not line.startswith(' ') else line}\n" for line in lines)


def _parent(parents: Mapping[str, Parent], model: str) -> Parent:
    if model not in parents:
        raise ConfigError(
            [Problem("", f"models.{model}", "the recipe uses a model that the run does not know")]
        )
    return parents[model]


def _copy_of(recipe: Recipe) -> dict[str, Any]:
    """Return the stage that gives the one model of an empty pipeline unchanged: a config needs a stage."""
    (model,) = recipe.models
    return {"merge": {"merge_method": "passthrough", "models": [{"model": model}]}}


def _ordered(value: Any) -> Any:
    """Return ``value`` with the keys of every mapping in the order in which people read them."""
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    first = {key: index for index, key in enumerate(_ORDER)}
    keys = sorted(value, key=lambda key: (first.get(key, len(first)), key))
    return {key: _ordered(value[key]) for key in keys}
