"""A recipe as a model folder that transformers and vLLM load, with its card and its recipe inside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.errors import CandidateError, UserError
from evolve.export.card import card
from evolve.export.recipe import recipe_yaml, written_down
from evolve.types import Recipe
from evolve.weights.files import CARD, RECIPE
from evolve.weights.location import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from evolve.config.schema import ScoreConfig
    from evolve.types import Parent, Training
    from evolve.weights.writer import Target


@dataclass(frozen=True)
class About:
    """What is said of an exported model.

    Attributes:
        name: Title of the card, and name of the recipe.
        score: How it was scored.
        scores: Header and rows of the table of scores.
        notes: Sentences below the table.
        training: What its training stages showed when it was scored: texts that a teacher wrote then are
            those that are trained on now.
    """

    name: str
    score: ScoreConfig | None = None
    scores: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    notes: Sequence[str] = ()
    training: Sequence[Training] = ()


def export_model(
    recipe: Recipe,
    parents: Mapping[str, Parent],
    target: Target,
    *,
    about: About,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Build ``recipe`` into a new folder.

    Args:
        recipe: All values fixed.
        parents: Name to parent.
        target: A folder that does not exist or is empty, or one to replace.
        about: What the card and the recipe say of it.
        folder: What paths of data files are relative to; absent: the working directory.
        progress: Called with the tensors that are done and their total.

    Raises:
        UserError: The recipe cannot be built, or the folder cannot be written.
    """
    from evolve.stages.pipeline import build
    from evolve.stages.together import train_together
    from evolve.weights.reader import open_model
    from evolve.weights.writer import write_model

    if target.replace:
        _require_no_parent(target.out, parents)
    models = {model: open_model(parents[model].path) for model in recipe.models}
    meant = Recipe.make(recipe.models, written_down(recipe.pipeline, about.training))
    shown: list[Training] = []
    try:
        train_together(meant, {name: parents[name].path for name in recipe.models}, folder=folder)
        model = build(meant, models, folder=folder, told=shown.append)
        done = 0

        def counted(tensor: str) -> Tensor:
            nonlocal done
            result = model.tensor(tensor)
            done += 1
            if progress is not None:
                progress(done, len(model.specs))
            return result

        write_model(
            replace(model, tensor=counted),
            target.out,
            extra=described(recipe, parents, replace(about, training=shown)),
            shard_bytes=target.shard_bytes,
            replace=target.replace,
        )
    except CandidateError as error:
        raise UserError(f"recipe {recipe.hash} cannot be built ({error.kind}): {error}") from error


def described(recipe: Recipe, parents: Mapping[str, Parent], about: About) -> dict[str, str]:
    """Return file name to text of what says where an exported model comes from: its card and its recipe."""
    text = recipe_yaml(
        recipe,
        parents,
        name=about.name,
        score=about.score,
        notes=about.notes,
        training=about.training,
    )
    readme = card(recipe, parents, name=about.name, recipe_text=text, scores=about.scores, notes=about.notes)
    return {CARD: readme, RECIPE: text}


def _require_no_parent(out: Path, parents: Mapping[str, Parent]) -> None:
    """Raise if a parent lies in the folder that is to be replaced."""
    place = out.resolve()
    for name, parent in parents.items():
        for part in parts(parent.path):
            if Path(part).resolve().is_relative_to(place):
                raise UserError(f"{out} holds the model {name!r} itself: choose another folder")
