"""How single models look in a report: which items their scores are over, and what they are held against."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from evolve.report.collect import SPLITS
from evolve.report.sources import Measured, Row, sources, speed_of
from evolve.score.choice import Choice, can_choose, choose, half, half_parents
from evolve.score.objective import objective, shortfalls
from evolve.score.statistics import Comparison, compare, interval, unpaired
from evolve.space.baselines import AVERAGE
from evolve.types import Failed, Outcome, Scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.report.collect import Material, Trial
    from evolve.report.recovered import Distilled
    from evolve.report.sources import Size
    from evolve.score.intervals import Interval
    from evolve.score.objective import Parents
    from evolve.types import Recipe, Split

Role = Literal["best", "candidate", "parent", "average"]


@dataclass(frozen=True)
class Entry:
    """One model of the closing table.

    Attributes:
        name: ``best``, a parent's name, ``average``, or ``trial N``.
        role: What it is.
        number: Its trial, or None for a baseline.
        recipe: Hash of its recipe.
        search: Outcome on the items of the search, or None if it was not scored.
        holdout: Outcome on items that had no say in any choice, or None.
        intervals: Split to the objective with its 95 % interval, where it was scored.
        gaps: Split to the comparison of the best with this one; empty for the best itself.
        choice: The objective on the half of the holdout that chose the winner, for those that were to choose
            from; the intervals of all of them hold at once.
        shrinkage: Search score minus holdout score.
        broken: Split to the tasks on which it loses more than ``retention`` allows, with the excess.
        size: Its size, or None.
        speed: Items that the engine answered in a second, or None.
    """

    name: str
    role: Role
    number: int | None
    recipe: str
    search: Outcome | None
    holdout: Outcome | None
    intervals: Mapping[Split, Interval] = field(default_factory=dict)
    gaps: Mapping[Split, Comparison] = field(default_factory=dict)
    choice: Interval | None = None
    shrinkage: Interval | None = None
    broken: Mapping[Split, Mapping[str, float]] = field(default_factory=dict)
    size: Size | None = None
    speed: float | None = None

    @property
    def label(self) -> str:
        """How it is called in a table."""
        if self.role == "best":
            return f"best (trial {self.number})"
        return "plain average" if self.role == "average" else self.name

    def outcome(self, split: Split) -> Outcome | None:
        """Return what came out of it on a split."""
        return self.search if split == "search" else self.holdout

    def scored(self, split: Split) -> Scored | None:
        """Return the scores on a split, or None where it failed or was not scored."""
        outcome = self.outcome(split)
        return outcome if isinstance(outcome, Scored) else None


@dataclass(frozen=True)
class Final:
    """How the winner was chosen.

    Attributes:
        choice: The choice.
        numbers: The trials that were to choose from, the best of the search first.
        recipes: Their recipes' hashes.
    """

    choice: Choice
    numbers: tuple[int, ...]
    recipes: tuple[str, ...]

    @property
    def winner(self) -> int:
        """The trial that won."""
        return self.numbers[self.choice.winner]


def finalists(material: Material, ranked: Sequence[Trial]) -> list[Trial]:
    """Return the trials that the winner is chosen from, the best of the search first.

    What else is scored on the holdout, such as the winner without a stage, may be a trial's recipe too.
    """
    score = material.loaded.config.score
    return [
        trial
        for trial in ranked[: score.holdout.top if score else 1]
        if trial.recipe is not None and isinstance(material.outcome(trial.recipe, "holdout"), Scored)
    ]


def choose_winner(material: Material, ranked: Sequence[Trial]) -> tuple[Final | None, int | None]:
    """Choose among the trials that are scored on the holdout.

    Args:
        material: The run.
        ranked: Complete trials of different recipes, the best first.

    Returns:
        The choice, or None where there was none; and the trial that won, or None for the first of all.
    """
    score = material.loaded.config.score
    trials = finalists(material, ranked)
    outcomes = [material.outcome(trial.recipe, "holdout") for trial in trials if trial.recipe]
    scores = [outcome.tasks for outcome in outcomes if isinstance(outcome, Scored)]
    if score is None or not can_choose(scores):
        return None, trials[0].number if trials else None
    choice = choose(scores, score, material.reference("holdout"))
    numbers = tuple(trial.number for trial in trials)
    final = Final(choice, numbers, tuple(trial.recipe_hash for trial in trials))
    return final, final.winner


class Views:
    """Makes the entries of a run.

    Args:
        material: The run.
        chosen: Whether one half of the holdout chose the winner; then only the other half is shown.
    """

    def __init__(self, material: Material, *, chosen: bool) -> None:
        self._material = material
        self._score = material.loaded.config.score
        self._chosen = chosen
        holdout: Parents | None = material.reference("holdout")
        self._parents: dict[Split, Parents | None] = {
            "search": material.reference("search"),
            "holdout": half_parents(holdout, 1) if chosen else holdout,
        }

    def parents(self, split: Split) -> Parents | None:
        """Return the parents' scores on the items that are shown, or None while one is not scored."""
        return self._parents[split]

    def entry(self, trial: Trial, role: Role = "best", final: Final | None = None) -> Entry:
        """Return the entry of a trial."""
        entry = Entry(
            name="best" if role == "best" else f"trial {trial.number}",
            role=role,
            number=trial.number,
            recipe=trial.recipe_hash,
            search=trial.outcome,
            holdout=self.shown(self._material.outcome(trial.recipe, "holdout")) if trial.recipe else None,
        )
        if final is not None and trial.number in final.numbers:
            place = final.numbers.index(trial.number)
            entry = replace(entry, choice=final.choice.intervals[place])
        size = self._material.sizes(trial.recipe) if trial.recipe else None
        return self._measured(replace(entry, size=size, speed=self._speed(trial.recipe_hash)))

    def baseline(self, name: str) -> Entry:
        """Return the entry of a parent or of the plain average."""
        recipe = self._material.baselines[name]
        entry = Entry(
            name=name,
            role="average" if name == AVERAGE and recipe.pipeline else "parent",
            number=None,
            recipe=recipe.hash,
            search=self._material.outcome(recipe, "search"),
            holdout=self.shown(self._material.outcome(recipe, "holdout")),
            size=self._material.sizes(recipe),
            speed=self._speed(recipe.hash),
        )
        return self._measured(entry)

    def shown(self, outcome: Outcome | None) -> Outcome | None:
        """Return a holdout outcome on the items that had no say in the choice, the only ones in tables."""
        if not self._chosen or outcome is None or isinstance(outcome, Failed) or self._score is None:
            return outcome
        tasks = half(outcome.tasks, 1)
        value, stderr = objective(tasks, self._score, self._parents["holdout"])
        return replace(outcome, value=value, stderr=stderr, tasks=tasks)

    def against(self, best: Entry | None, entry: Entry) -> Entry:
        """Return ``entry`` with how much better the best is."""
        if best is None or self._score is None or entry.recipe == best.recipe:
            return entry
        gaps: dict[Split, Comparison] = {}
        for split in SPLITS:
            ours, theirs = best.scored(split), entry.scored(split)
            if ours is None or theirs is None:
                continue
            # Without common items, as after a hand-made change of a record, there is nothing to compare.
            with contextlib.suppress(ValueError):
                gaps[split] = compare(ours.tasks, theirs.tasks, self._score, self.parents(split))
        return replace(entry, gaps=gaps)

    def sources(self, entries: Sequence[Entry | None], gap: Distilled | None = None) -> tuple[Row, ...]:
        """Return the table of models, on the holdout where the first one was scored there.

        Args:
            entries: The rows, the best first.
            gap: What the best was distilled from, and by whom. A student that is no parent has a row of its
                own where it was scored.
        """
        shown = [entry for entry in entries if entry is not None]
        if self._score is None or not shown:
            return ()
        split: Split = "holdout" if any(entry.holdout for entry in shown) else "search"
        models = [
            Measured(entry.label, scored, entry.size, entry.speed, entry.role == "best")
            for entry in shown
            if (scored := entry.scored(split)) is not None
        ]
        parents = {entry.name: entry.scored(split) for entry in shown if entry.role == "parent"}
        known = {name: scored.tasks for name, scored in parents.items() if scored is not None}
        ends = [self.on(recipe, split) for recipe in (gap.before, gap.teacher)] if gap else []
        before, teacher = ends if len(ends) == 2 else (None, None)
        if gap is not None and gap.made and before is not None:
            models.insert(1, Measured("student before", before, self._material.sizes(gap.before)))
        whole = (before.tasks, teacher.tasks) if before and teacher else None
        return sources(models, known, self._score, whole)

    def on(self, recipe: Recipe, split: Split) -> Scored | None:
        """Return the scores of a recipe on the items of a split that are shown, or None."""
        outcome = self._material.outcome(recipe, split)
        outcome = self.shown(outcome) if split == "holdout" else outcome
        return outcome if isinstance(outcome, Scored) else None

    def _measured(self, entry: Entry) -> Entry:
        """Return ``entry`` with the intervals of its scores, its shrinkage, and what it loses too much."""
        if self._score is None:
            return entry
        found: dict[Split, Interval] = {}
        broken: dict[Split, Mapping[str, float]] = {}
        for split in SPLITS:
            scored = entry.scored(split)
            if scored is not None:
                found[split] = interval(scored.tasks, self._score, self.parents(split))
                broken[split] = shortfalls(scored.tasks, self._score, self.parents(split))
        shrinkage = unpaired(found["search"], found["holdout"]) if len(found) == len(SPLITS) else None
        return replace(entry, intervals=found, shrinkage=shrinkage, broken=broken)

    def _speed(self, recipe: str) -> float | None:
        outcome = self._material.outcomes.get(f"{recipe}-search")
        return speed_of(outcome) if isinstance(outcome, Scored) else None
