"""The model card: what the model is made of, how good it is, and how to make it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from evolve import __version__
from evolve.export.licence import UNKNOWN, licence_of
from evolve.export.recipe import source_of
from evolve.weights.files import RECIPE
from evolve.weights.location import places

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.types import Parent, Recipe


def card(
    recipe: Recipe,
    parents: Mapping[str, Parent],
    *,
    name: str,
    recipe_text: str,
    scores: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the README.md of a built model.

    Args:
        recipe: What it was built from.
        parents: Name to parent.
        name: Title of the card.
        recipe_text: The recipe as a config file.
        scores: Header and rows of the table of scores, or None where nothing was scored.
        notes: Sentences below the table.
    """
    used = {model: parents[model] for model in recipe.models}
    licences = {model: licence_of(parent.path) for model, parent in used.items()}
    parts = [
        f"---\n{_metadata(recipe, used, licences)}---\n\n# {_plain(name)}\n",
        f"Built by evolve {__version__} from the models below. Recipe `{recipe.hash}`.\n",
    ]
    if scores is not None:
        parts.append("## Scores\n\n" + _table(*scores))
        parts.extend(f"{note}\n" for note in notes)
    rows = [
        (model, f"`{source_of(parent)}`", licences[model], f"`{recipe.models[model]}`")
        for model, parent in used.items()
    ]
    parts.append("## Parents\n\n" + _table(("name", "model", "licence", "content"), rows))
    parts.append(_licence_note(licences))
    parts.append(f"Seeds: {_seeds(recipe)}.\n")
    parts.append(
        "## Recipe\n\n"
        f"`{RECIPE}` in this folder is the recipe; with the models at hand this command builds the same "
        f"tensors again:\n\n```sh\nevolve build {RECIPE} OUT\n```\n\n"
        f"```yaml\n{recipe_text.rstrip()}\n```\n"
    )
    return "\n".join(parts)


def _metadata(recipe: Recipe, parents: Mapping[str, Parent], licences: Mapping[str, str]) -> str:
    kinds = [kind for stage in recipe.pipeline for kind in stage]
    document: dict[str, object] = {
        "base_model": list(dict.fromkeys(name for parent in parents.values() for name in _model_ids(parent))),
        "library_name": "transformers",
        "tags": ["evolve", *dict.fromkeys(kinds)],
    }
    if "merge" in kinds:
        document["base_model_relation"] = "merge"
    different = set(licences.values())
    if len(different) == 1 and UNKNOWN not in different and "(file" not in next(iter(different)):
        document["license"] = next(iter(different))
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _model_ids(parent: Parent) -> list[str]:
    """Return hub ids, and names of folders and files: the hub refuses a card that has a path there."""
    return [
        "/".join(place.partition("@")[0].split("/")[:2])
        if commit is not None
        else _folder_name(place, parent)
        for place, commit in places(parent)
    ]


def _folder_name(place: str, parent: Parent) -> str:
    name = Path(place).expanduser().absolute().name
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or parent.name


def _licence_note(licences: Mapping[str, str]) -> str:
    unknown = [model for model, licence in licences.items() if licence == UNKNOWN]
    if unknown:
        return (
            f"The licence of {', '.join(unknown)} is not stated in its files: ask before you pass this on.\n"
        )
    if len(set(licences.values())) > 1:
        return "The parents have different licences: all of them bind this model.\n"
    return "The licence of the parents binds this model.\n"


def _seeds(recipe: Recipe) -> str:
    seeds = [
        f"{kind} {block['seed']}"
        for stage in recipe.pipeline
        for kind, block in stage.items()
        if block.get("seed") is not None
    ]
    return ", ".join(seeds) or "none, nothing is random"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(_plain(cell) for cell in line) + " |\n" for line in lines)


def _plain(text: str) -> str:
    """Keep a text in its cell and in its line."""
    return " ".join(text.split()).replace("|", "\\|")
