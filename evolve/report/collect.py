"""Reads a run's folder for the people who look at it: no lock, no writing, also while the run goes on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evolve.types import Failed, Job, Outcome, Recipe, Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from evolve.config.load import Loaded
    from evolve.report.sources import Size
    from evolve.space.genes import ChoiceValue
    from evolve.store.rundir import RunDir
    from evolve.types import FailureKind, Parent, Split, TaskScore, Training
    from evolve.weights.model import Model

SPLITS: tuple[Split, ...] = ("search", "holdout")


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
        values: Gene name to value, as the sampler sees it; empty where some are not known yet.
    """

    number: int
    state: str
    value: float | None
    params: Mapping[str, ChoiceValue]
    recipe: Recipe | None
    recipe_hash: str
    outcome: Outcome | None
    values: Mapping[str, float] = field(default_factory=dict)

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
        sizes: Recipe's hash to the size of what it builds, as far as the parents are there.
        layers: Layers of the first parent, or None where it is not there.
        training: Recipe's hash to what its training stages showed, for recipes that have such.
    """

    name: str
    path: Path
    loaded: Loaded
    state: Mapping[str, Any]
    parents: Mapping[str, Parent]
    trials: tuple[Trial, ...]
    baselines: Mapping[str, Recipe]
    outcomes: Mapping[str, Outcome]
    sizes: Callable[[Recipe], Size | None] = lambda _: None
    layers: int | None = None
    training: Mapping[str, tuple[Training, ...]] = field(default_factory=dict)

    def parents_on(self, split: Split) -> dict[str, Mapping[str, TaskScore]]:
        """Return the parents that are scored on a split, name to tasks."""
        found = {
            name: self.outcome(recipe, split)
            for name, recipe in self.baselines.items()
            if name in self.parents
        }
        return {name: outcome.tasks for name, outcome in found.items() if isinstance(outcome, Scored)}

    def reference(self, split: Split) -> dict[str, Mapping[str, TaskScore]] | None:
        """Return all parents' scores on a split, which values may depend on, or None: one is missing."""
        found = self.parents_on(split)
        return found if len(found) == len(self.parents) else None

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
    outcomes = {record.job.key: record.outcome for record in records}
    everything = [*run.parts(), *records]
    recipes = {record.recipe.hash: record.recipe for record in everything}
    contents = {name: parent.content for name, parent in parents.items()}
    known = baselines(loaded, contents)
    if state.get("no_average"):
        known.pop(AVERAGE, None)
    outcomes = _valued(outcomes, loaded, known, parents)
    sizes, layers = measured(parents)
    return Material(
        name=run.path.name,
        path=run.path,
        loaded=loaded,
        state=state,
        parents=parents,
        trials=_trials(run, loaded, state, recipes, outcomes),
        baselines=known,
        outcomes=outcomes,
        sizes=sizes,
        layers=layers,
        training={
            record.recipe.hash: record.outcome.training
            for record in everything
            if isinstance(record.outcome, Scored) and record.outcome.training
        },
    )


def _valued(
    outcomes: Mapping[str, Outcome],
    loaded: Loaded,
    baselines: Mapping[str, Recipe],
    parents: Mapping[str, Parent],
) -> dict[str, Outcome]:
    """Return outcomes with the values that their tasks have beside the parents'."""
    from evolve.score.objective import valued

    found = dict(outcomes)
    for split in SPLITS:
        scores = {
            name: outcomes.get(Job(baselines[name], split).key) for name in parents if name in baselines
        }
        known = {name: one.tasks for name, one in scores.items() if isinstance(one, Scored)}
        if len(known) == len(scores):
            found |= {
                key: valued(outcome, loaded.config.score, known)
                for key, outcome in outcomes.items()
                if key.endswith(f"-{split}")
            }
    return found


def measured(parents: Mapping[str, Parent]) -> tuple[Callable[[Recipe], Size | None], int | None]:
    """Return a function from a recipe to the size of what it builds, and the layers of the first parent.

    Only headers are read. A parent that is gone makes sizes unknown.
    """
    from evolve.errors import EvolveError
    from evolve.stages.merge.layers import layer_count
    from evolve.stages.pipeline import outline
    from evolve.weights.reader import open_model

    models = {}
    for name, parent in parents.items():
        try:
            models[name] = open_model(parent.path)
        except EvolveError:
            continue

    def size(recipe: Recipe) -> Size | None:
        if any(name not in models for name in recipe.models):
            return None
        try:
            return size_of(outline(recipe, models))
        except (EvolveError, LookupError):
            return None

    first = models.get(next(iter(parents), ""))
    return functools.cache(size), layer_count(first) if first is not None else None


def size_of(model: Model) -> Size:
    """Return the size of a model, from the shapes and types of its tensors."""
    from evolve.report.sources import Size
    from evolve.weights.header import nbytes

    specs = model.specs.values()
    return Size(sum(spec.numel for spec in specs), sum(nbytes(spec) for spec in specs))


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
        values = row.values if genes <= row.values.keys() else {}
        params = space.params(values) if values else {}
        outcome = outcomes.get(Job(recipe).key) if recipe else None
        trials.append(Trial(row.number, row.state, row.value, params, recipe, row.recipe, outcome, values))
    return tuple(sorted(trials, key=lambda trial: trial.number))
