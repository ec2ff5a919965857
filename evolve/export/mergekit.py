"""A recipe as mergekit's YAML, for pipelines that are one merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve import __version__
from evolve.config.dump import to_yaml
from evolve.errors import UserError
from evolve.export.layers import for_mergekit, sliced, slices_of
from evolve.export.recipe import comment, recipe_document, source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.types import Parent, Recipe

_OURS = ("name", "enabled", "seed")
"""Keys of a stage that mergekit does not have."""

_RANDOM = frozenset({"dare_linear", "dare_ties", "della", "della_linear"})


def mergekit_document(recipe: Recipe, parents: Mapping[str, Parent]) -> dict[str, Any]:
    """Return the content of mergekit's YAML.

    Raises:
        UserError: The recipe is more than one merge.
    """
    (stage, *more) = recipe_document(recipe, parents)["pipeline"]
    kinds = [kind for step in (stage, *more) for kind in step]
    if more or kinds != ["merge"]:
        raise UserError(
            f"the recipe is a pipeline of {len(kinds)} stages ({', '.join(kinds)}); mergekit's YAML holds "
            "one merge: use --to recipe, which `evolve build` reads, or --to model"
        )
    block = {key: value for key, value in stage["merge"].items() if key not in _OURS}
    if sliced(block):
        block = for_mergekit(block, parents)
    sources = {model: _reference(parents[model]) for model in recipe.models}
    renamed: dict[str, Any] = _renamed(block, sources)
    return renamed


def mergekit_yaml(recipe: Recipe, parents: Mapping[str, Parent], *, notes: Iterable[str] = ()) -> str:
    """Return mergekit's YAML for ``recipe``, with a comment that says where it comes from.

    Args:
        recipe: All values fixed.
        parents: Name to parent.
        notes: Lines for the comment, such as the scores.

    Raises:
        UserError: The recipe is more than one merge.
    """
    document = mergekit_document(recipe, parents)
    lines = [f"recipe {recipe.hash}, written by evolve {__version__} for mergekit-yaml", *notes]
    used = [parents[name] for name in recipe.models]
    if any(parent.revision is None and not Path(parent.source).is_absolute() for parent in used):
        lines.append("folders are relative to the working directory of the run")
    if document["merge_method"] in _RANDOM:
        lines.append(
            f"{document['merge_method']} drops weights at random: mergekit draws other ones than evolve did, "
            "so the tensors differ from the scored model; --to recipe and --to model keep them"
        )
    pieces = slices_of(document)
    if pieces and len(pieces[-1]["sources"]) > len(pieces[0]["sources"]):
        lines.append(
            "mergekit 0.1.5 takes as many models for the last norm and the head as the first slice has, and "
            "the last slice has more: these tensors differ from the scored model"
        )
    return comment(lines) + to_yaml(document)


def _reference(parent: Parent) -> Any:
    """Return mergekit's reference: a text, or a mapping where a folder's name would be misread."""
    if parent.revision is not None:
        return source_of(parent)
    folder = str(Path(parent.source).expanduser())
    return {"model": {"path": folder}} if any(mark in folder for mark in "@+") else folder


def _renamed(value: Any, sources: Mapping[str, Any]) -> Any:
    """Replace our names of models wherever mergekit's schema has a model."""
    if isinstance(value, list):
        return [_renamed(item, sources) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: sources.get(item, item) if _names_model(key, item, value) else _renamed(item, sources)
        for key, item in value.items()
        if item is not None
    }


def _names_model(key: str, item: Any, block: Mapping[str, Any]) -> bool:
    """Whether ``item`` is a model's name. ``tokenizer_source: base`` is a word of mergekit's own."""
    if key == "tokenizer_source" and item == "base":
        return block.get("base_model") is None
    return isinstance(item, str) and key in ("model", "base_model", "tokenizer_source")
