"""What a run has found: a pure function of its records, its trials and its baselines.

Search scores choose the best candidate, so they flatter it; the holdout does not. Differences are paired
over the same items wherever both models have them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from evolve.score.statistics import Comparison, Interval, compare, interval
from evolve.space.baselines import AVERAGE
from evolve.types import Failed, Outcome, Scored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.report.collect import Material, Trial
    from evolve.space.genes import ChoiceValue
    from evolve.types import Recipe, Split

_SPLITS: tuple[Split, ...] = ("search", "holdout")


@dataclass(frozen=True)
class Entry:
    """One model of the closing table.

    Attributes:
        name: ``best``, a parent's name, ``average``, or ``trial N``.
        role: What it is.
        number: Its trial, or None for a baseline.
        recipe: Hash of its recipe.
        search: Outcome on the items of the search, or None if it was not scored.
        holdout: Outcome on items that the search never saw, or None.
        intervals: Split to the objective with its 95 % interval, where it was scored.
        gaps: Split to the comparison of the best with this one; empty for the best itself.
    """

    name: str
    role: Literal["best", "candidate", "parent", "average"]
    number: int | None
    recipe: str
    search: Outcome | None
    holdout: Outcome | None
    intervals: Mapping[Split, Interval] = field(default_factory=dict)
    gaps: Mapping[Split, Comparison] = field(default_factory=dict)

    def scored(self, split: Split) -> Scored | None:
        """Return the scores on a split, or None where it failed or was not scored."""
        outcome = self.search if split == "search" else self.holdout
        return outcome if isinstance(outcome, Scored) else None


@dataclass(frozen=True)
class Point:
    """One trial of the convergence curve.

    Attributes:
        number: The trial.
        value: Its value.
        stderr: Its standard error, NaN where it is not known.
        best: The best value up to here.
    """

    number: int
    value: float
    stderr: float
    best: float


@dataclass(frozen=True)
class Summary:
    """What a run has found so far.

    Attributes:
        name: The run's name.
        run: The run's folder as it is best written on a command line.
        phase: What the run is doing; ``done`` at the end.
        reason: Why the search stopped, or None.
        best: The best candidate, or None before the first.
        best_params: Its genes.
        best_recipe: Its recipe, or None.
        top: The best candidates, different recipes, the best first.
        parents: One entry a parent, the best first.
        average: The plain average of the models, or None where the recipe has none.
        tasks: Task name to metric and weight in the objective.
        trials: How many trials were asked for, or None.
        states: How many trials are in each state.
        failures: Failed candidates by kind.
        failed: Some failed candidates: ``(number, kind, message)``.
        curve: The convergence curve.
        seconds: Phase of a candidate to the sum over all candidates.
        candidates: How many candidates ``seconds`` sums over.
        elapsed: Seconds from the start to the last change, or None.
        hot_score: Score of the best in the running engine, or None.
        fresh_score: Score of the exported folder in a fresh process, or None.
        seed: The seed of the search.
    """

    name: str
    run: str
    phase: str
    reason: str | None
    best: Entry | None
    best_params: Mapping[str, ChoiceValue]
    best_recipe: Recipe | None
    top: tuple[Entry, ...]
    parents: tuple[Entry, ...]
    average: Entry | None
    tasks: Mapping[str, tuple[str, float]]
    trials: int | None
    states: Mapping[str, int]
    failures: Mapping[str, int]
    failed: tuple[tuple[int, str, str], ...]
    curve: tuple[Point, ...]
    seconds: Mapping[str, float]
    candidates: int
    elapsed: float | None
    hot_score: Mapping[str, Any] | None
    fresh_score: Mapping[str, Any] | None
    seed: int

    @property
    def table(self) -> tuple[Entry, ...]:
        """The best, the parents and the average: the rows of the closing table."""
        rows = (self.best, *self.parents, self.average)
        return tuple(entry for entry in rows if entry is not None)

    @property
    def has_holdout(self) -> bool:
        """Whether anything was scored on the holdout."""
        return any(entry.holdout is not None for entry in (*self.table, *self.top))

    @property
    def best_parent(self) -> Entry | None:
        """The parent with the highest score on the search's items."""
        return self.parents[0] if self.parents and self.parents[0].scored("search") else None


def summarise(material: Material, run: str, *, top: int = 5) -> Summary:
    """Return what the run has found.

    Args:
        material: What was read from the run's folder.
        run: The run's folder or name, as commands should write it.
        top: How many candidates to list.
    """
    config, state = material.loaded.config, material.state
    score = config.score
    ranked = _ranked(material.trials)
    best_trial = ranked[0] if ranked else None
    best = _measured(_entry(material, best_trial), score) if best_trial else None
    entries = [_against(best, _entry(material, trial, "candidate"), score) for trial in ranked[:top]]
    baselines = [_against(best, _baseline(material, name), score) for name in material.baselines]
    parents = [entry for entry in baselines if entry.role == "parent"]
    started, updated = state.get("started"), state.get("updated")
    seconds, candidates = _seconds(material.trials)
    return Summary(
        name=material.name,
        run=run,
        phase=str(state.get("phase") or "checking"),
        reason=state.get("reason"),
        best=best,
        best_params=best_trial.params if best_trial else {},
        best_recipe=best_trial.recipe if best_trial else None,
        top=tuple(entries),
        parents=tuple(sorted(parents, key=_by_search)),
        average=next((entry for entry in baselines if entry.role == "average"), None),
        tasks={task.task: (task.metric, task.weight) for task in score.counted} if score else {},
        trials=state.get("trials") or config.search.trials,
        states=Counter(trial.state for trial in material.trials),
        failures=Counter(trial.failure_kind for trial in material.trials if trial.failure_kind),
        failed=tuple(_failed(material.trials)),
        curve=tuple(_curve(material.trials)),
        seconds=seconds,
        candidates=candidates,
        elapsed=float(updated) - float(started) if started and updated else None,
        hot_score=state.get("hot_score"),
        fresh_score=state.get("fresh_score"),
        seed=config.search.seed,
    )


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return complete trials with different recipes, the best first, the earlier one of equals."""
    found: dict[str, Trial] = {}
    for trial in sorted(_complete(trials), key=lambda trial: (-trial[1], trial[0].number)):
        found.setdefault(trial[0].recipe_hash or str(trial[0].number), trial[0])
    return list(found.values())


def _complete(trials: Iterable[Trial]) -> list[tuple[Trial, float]]:
    return [(trial, trial.value) for trial in trials if trial.state == "complete" and trial.value is not None]


def _entry(material: Material, trial: Trial, role: Literal["best", "candidate"] = "best") -> Entry:
    return Entry(
        name="best" if role == "best" else f"trial {trial.number}",
        role=role,
        number=trial.number,
        recipe=trial.recipe_hash,
        search=trial.outcome,
        holdout=material.outcome(trial.recipe, "holdout") if trial.recipe else None,
    )


def _baseline(material: Material, name: str) -> Entry:
    recipe = material.baselines[name]
    return Entry(
        name=name,
        role="average" if name == AVERAGE and recipe.pipeline else "parent",
        number=None,
        recipe=recipe.hash,
        search=material.outcome(recipe, "search"),
        holdout=material.outcome(recipe, "holdout"),
    )


def _measured(entry: Entry, score: ScoreConfig | None) -> Entry:
    """Return ``entry`` with the intervals of its scores."""
    found: dict[Split, Interval] = {}
    for split in _SPLITS:
        scored = entry.scored(split)
        if scored is not None and score is not None:
            found[split] = interval(scored.tasks, score)
    return replace(entry, intervals=found)


def _against(best: Entry | None, entry: Entry, score: ScoreConfig | None) -> Entry:
    """Return ``entry`` with its intervals, and how much better the best is."""
    entry = _measured(entry, score)
    if best is None or score is None or entry.recipe == best.recipe:
        return entry
    gaps: dict[Split, Comparison] = {}
    for split in _SPLITS:
        ours, theirs = best.scored(split), entry.scored(split)
        if ours is None or theirs is None:
            continue
        # Without common items, as after a hand-made change of a record, there is nothing to compare.
        with contextlib.suppress(ValueError):
            gaps[split] = compare(ours.tasks, theirs.tasks, score)
    return replace(entry, gaps=gaps)


def _by_search(entry: Entry) -> tuple[float, str]:
    scored = entry.scored("search")
    return (-scored.value if scored else float("inf"), entry.name)


def _failed(trials: Iterable[Trial], most: int = 20) -> list[tuple[int, str, str]]:
    rows = [(trial.number, trial.outcome) for trial in trials if isinstance(trial.outcome, Failed)]
    return [(number, outcome.kind, outcome.message) for number, outcome in rows[:most]]


def _curve(trials: Iterable[Trial]) -> list[Point]:
    points: list[Point] = []
    for trial, value in _complete(trials):
        best = max(value, points[-1].best) if points else value
        stderr = trial.scored.stderr if trial.scored else float("nan")
        points.append(Point(trial.number, value, stderr, best))
    return points


def _seconds(trials: Iterable[Trial]) -> tuple[dict[str, float], int]:
    """Sum the seconds by phase over different candidates: a repeated recipe was not evaluated again."""
    outcomes = {trial.recipe_hash: trial.outcome for trial in trials if trial.outcome}
    total: dict[str, float] = {}
    for outcome in outcomes.values():
        for phase, seconds in outcome.seconds.items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total, len(outcomes)
