"""Reads a run's folder for the people who look at it: no lock, no writing, also while the run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evolve.types import Failed, Job, Outcome, Recipe, Scored

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from evolve.config.load import Loaded
    from evolve.space.genes import ChoiceValue
    from evolve.store.rundir import RunDir
    from evolve.types import FailureKind, Parent, Split


@dataclass(frozen=True)
class Trial:
    """A trial of the study, with what came out of it.

    Attributes:
        number: Its number in the study.
        state: ``complete``, ``failed``, ``running`` or ``pruned``.
        value: The objective; None where there is none.
        params: Gene name to value, as the recipe has it.
        recipe: The recipe, or None before it was evaluated.
        recipe_hash: Its hash, or "" before it is known.
        outcome: What the evaluator said, or None.
    """

    number: int
    state: str
    value: float | None
    params: Mapping[str, ChoiceValue]
    recipe: Recipe | None
    recipe_hash: str
    outcome: Outcome | None

    @property
    def scored(self) -> Scored | None:
        """The scores, or None."""
        return self.outcome if isinstance(self.outcome, Scored) else None

    @property
    def failure(self) -> Failed | None:
        """The failure, or None."""
        return self.outcome if isinstance(self.outcome, Failed) else None

    @property
    def failure_kind(self) -> FailureKind | None:
        """The kind of the failure, or None."""
        return self.failure.kind if self.failure else None


@dataclass(frozen=True)
class Material:
    """Everything that a report is made of.

    Attributes:
        name: The run's name.
        path: The run's folder.
        loaded: The run's config.
        state: What state.json says.
        parents: Name to parent.
        trials: The trials in the order of their numbers.
        baselines: Name to recipe: each parent under its name, and ``average``.
        outcomes: Key of a job to its outcome, under the scoring that the run uses now.
    """

    name: str
    path: Path
    loaded: Loaded
    state: Mapping[str, Any]
    parents: Mapping[str, Parent]
    trials: tuple[Trial, ...]
    baselines: Mapping[str, Recipe]
    outcomes: Mapping[str, Outcome]

    def outcome(self, recipe: Recipe, split: Split) -> Outcome | None:
        """Return what came out of a recipe on a split, or None."""
        return self.outcomes.get(Job(recipe, split).key)


def collect(run: RunDir, loaded: Loaded) -> Material:
    """Read the run.

    Args:
        run: The run.
        loaded: Its own config.
    """
    from evolve.space.baselines import AVERAGE, baselines

    state = run.state()
    parents = run.parents()
    key = state.get("score_key")
    records = [record for record in run.records() if key is None or record.score_key == key]
    outcomes = {Job(record.recipe, record.split).key: record.outcome for record in records}
    recipes = {record.recipe.hash: record.recipe for record in [*run.parts(), *records]}
    contents = {name: parent.content for name, parent in parents.items()}
    compared = baselines(loaded, contents)
    if state.get("no_average"):
        compared.pop(AVERAGE, None)
    return Material(
        name=run.path.name,
        path=run.path,
        loaded=loaded,
        state=state,
        parents=parents,
        trials=_trials(run, loaded, state, recipes, outcomes),
        baselines=compared,
        outcomes=outcomes,
    )


def _trials(
    run: RunDir,
    loaded: Loaded,
    state: Mapping[str, Any],
    recipes: Mapping[str, Recipe],
    outcomes: Mapping[str, Outcome],
) -> tuple[Trial, ...]:
    from evolve.space.space import derive
    from evolve.store.study import load_trials

    study = state.get("study")
    if not study:
        return ()
    space = derive(loaded)
    genes = {gene.name for gene in space.genes}
    trials = []
    for row in load_trials(run, loaded.config.search.storage, study):
        recipe = recipes.get(row.recipe)
        # A trial that was just asked may not have all of its values yet.
        params = space.params(row.values) if genes <= row.values.keys() else {}
        outcome = outcomes.get(Job(recipe).key) if recipe else None
        trials.append(Trial(row.number, row.state, row.value, params, recipe, row.recipe, outcome))
    return tuple(sorted(trials, key=lambda trial: trial.number))
