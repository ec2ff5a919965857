"""A recipe as mergekit's YAML, for pipelines that are one merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve import __version__
from evolve.config.dump import to_yaml
from evolve.errors import UserError
from evolve.export.layers import for_mergekit, sliced, slices_of
from evolve.export.recipe import comment, recipe_document
from evolve.registry import MERGE_METHODS
from evolve.weights.chat_template import NAMED
from evolve.weights.gguf import is_gguf
from evolve.weights.location import PLUS, places

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.types import Parent, Recipe

_OURS = ("name", "enabled", "seed")
"""Keys of a stage that mergekit does not have."""


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
    method = stage["merge"]["merge_method"]
    if not MERGE_METHODS.load(method).mergekit:
        raise UserError(
            f"mergekit has no method {method}: use --to recipe, which `evolve build` reads, or --to model"
        )
    block = {key: value for key, value in stage["merge"].items() if key not in _OURS}
    if "chat_template" in block:
        # mergekit's templates of these names differ from ours, so the text itself is written.
        block["chat_template"] = NAMED.get(block["chat_template"], block["chat_template"])
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
    if any(_is_relative(parent) for parent in used):
        lines.append("folders are relative to the working directory of the run")
    if any(len(places(parent)) > 1 for parent in used):
        lines.append("adapters (model+adapter): mergekit-yaml needs --lora-merge-cache FOLDER")
    method = MERGE_METHODS.load(document["merge_method"])
    lines += method.mergekit_notes(document.get("parameters", {}))
    if "tokenizer" in document or "tokenizer_source" in document:
        lines.append(
            "mergekit leaves the special token ids of config.json as they are in the base, and adds ordinary "
            "tokens of other models as they are spelled in their vocabulary: see docs/merge-methods.md"
        )
    pieces = slices_of(document)
    if pieces and len(pieces[-1]["sources"]) > len(pieces[0]["sources"]):
        lines.append(
            "mergekit 0.1.5 takes as many models for the last norm and the head as the first slice has, and "
            "the last slice has more: these tensors differ from the scored model"
        )
    return comment(lines) + to_yaml(document)


def _reference(parent: Parent) -> Any:
    """Return mergekit's reference: a text, or a mapping where a folder's name would be misread.

    Raises:
        UserError: mergekit has no reference for it.
    """
    found = places(parent)
    ours = "use --to recipe, which `evolve build` reads, or --to model"
    if len(found) > 2:
        raise UserError(f"model {parent.name!r} has {len(found) - 1} adapters, mergekit takes one: {ours}")
    if is_gguf(found[0][0].partition("@")[0]):
        raise UserError(f"model {parent.name!r} is a GGUF file, which mergekit does not read: {ours}")
    mappings = [_mapping(place, commit) for place, commit in found]
    texts = ["@".join(mapping.values()) for mapping in mappings]
    if not any(mark in mapping["path"] for mapping in mappings for mark in "@+"):
        return PLUS.join(texts)
    return dict(zip(("model", "lora"), mappings, strict=False))


def _mapping(place: str, commit: str | None) -> dict[str, str]:
    if commit is not None:
        return {"path": place.partition("@")[0], "revision": commit}
    return {"path": str(Path(place).expanduser())}


def _is_relative(parent: Parent) -> bool:
    return any(
        commit is None and not Path(place).expanduser().is_absolute() for place, commit in places(parent)
    )


def _renamed(value: Any, sources: Mapping[str, Any]) -> Any:
    """Replace our names of models wherever mergekit's schema has a model."""
    if isinstance(value, list):
        return [_renamed(item, sources) for item in value]
    if not isinstance(value, dict):
        return value
    based = value.get("base_model") is not None
    return {
        key: _tokenizer(item, sources, based=based)
        if key in ("tokenizer", "tokenizer_source")
        else sources.get(item, item)
        if key in ("model", "base_model") and isinstance(item, str)
        else _renamed(item, sources)
        for key, item in value.items()
        if item is not None
    }


def _tokenizer(value: Any, sources: Mapping[str, Any], *, based: bool) -> Any:
    """Rename the models of ``tokenizer`` or ``tokenizer_source``; with a base, ``base`` is no name."""
    if isinstance(value, str):
        return value if value == "union" or (value == "base" and based) else sources.get(value, value)
    renamed = {key: item for key, item in value.items() if item is not None}
    if "source" in renamed:
        renamed["source"] = _tokenizer(renamed["source"], sources, based=based)
    if "tokens" in renamed:
        renamed["tokens"] = {
            token: {**entry, "source": _renamed({"model": entry["source"]}, sources)["model"]}
            for token, entry in renamed["tokens"].items()
        }
    return renamed
