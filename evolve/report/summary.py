"""What a run has found: a pure function of its records, its trials and its baselines.

Search scores choose the finalists, so they flatter them. Where several were scored on the holdout, one half
of it chooses the winner and the other half is what "holdout" means in every table. Differences are paired
over the same items wherever both models have them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evolve.report.layers import profiles, stackings
from evolve.report.recovered import distilled
from evolve.report.switched import switched_stages
from evolve.report.trade import trade_of
from evolve.report.variants import Variants, variants_of
from evolve.report.views import Entry, Final, Views, choose_winner, finalists
from evolve.types import Failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.report.collect import Material, Trial
    from evolve.report.layers import Profile, Stacking
    from evolve.report.sources import Row
    from evolve.report.switched import Switched
    from evolve.report.trade import Trade
    from evolve.space.genes import ChoiceValue
    from evolve.types import Recipe, Training


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
        final: How the winner was chosen among several on one half of the holdout, or None: it was not.
        finalists: Those that the winner was chosen from, the best of the search first.
        score: Tasks and objective, or None.
        sources: The table of models: best, parents, average.
        profiles: The parameters of the best recipe over the layers.
        overlaps: What items share with the texts that the recipe reads, as the run's state has it.
        variants: The best recipe with other seeds, and without each of its stages.
        stackings: Where the layers of the best recipe are from, of every merge in it that stacks layers.
        training: What the training stages of the best have shown.
        switched: What the search saw of the stages that genes switch.
        trade: Gain against forgetting, or None: no task has a role.
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
    final: Final | None = None
    finalists: tuple[Entry, ...] = ()
    score: ScoreConfig | None = None
    sources: tuple[Row, ...] = ()
    profiles: tuple[Profile, ...] = ()
    overlaps: tuple[Mapping[str, Any], ...] = ()
    variants: Variants = field(default_factory=Variants)
    stackings: tuple[Stacking, ...] = ()
    training: tuple[Training, ...] = ()
    switched: tuple[Switched, ...] = ()
    trade: Trade | None = None

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
    ranked = _ranked(material.trials)
    final, number = choose_winner(material, ranked)
    winner = next((trial for trial in ranked if trial.number == number), ranked[0] if ranked else None)
    views = Views(material, chosen=final is not None)
    best = views.entry(winner) if winner else None
    entries = [views.against(best, views.entry(trial, "candidate", final)) for trial in ranked[:top]]
    looked_at = [views.entry(trial, "candidate", final) for trial in finalists(material, ranked) if final]
    baselines = [views.against(best, views.baseline(name)) for name in material.baselines]
    parents = tuple(sorted((one for one in baselines if one.role == "parent"), key=_by_search))
    average = next((entry for entry in baselines if entry.role == "average"), None)
    started, updated = state.get("started"), state.get("updated")
    seconds, candidates = _seconds(material.trials)
    score = config.score
    return Summary(
        name=material.name,
        run=run,
        phase=str(state.get("phase") or "checking"),
        reason=state.get("reason"),
        best=best,
        best_params=winner.params if winner else {},
        best_recipe=winner.recipe if winner else None,
        top=tuple(entries),
        parents=parents,
        average=average,
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
        final=final,
        finalists=tuple(looked_at),
        score=score,
        sources=views.sources(
            [best, *parents, average], distilled(material, winner.recipe if winner else None)
        ),
        profiles=_profiles(material, winner),
        overlaps=tuple(state.get("overlaps") or ()),
        variants=variants_of(material, views, winner.recipe if winner else None, [*parents[:1], average]),
        stackings=tuple(stackings(winner.recipe)) if winner and winner.recipe else (),
        training=material.training.get(winner.recipe_hash, ()) if winner else (),
        switched=switched_stages(material, ranked, winner),
        trade=trade_of(material, ranked, best, [*([best] if best else []), *looked_at, *baselines]),
    )


def _profiles(material: Material, winner: Trial | None) -> tuple[Profile, ...]:
    if winner is None or winner.recipe is None or not material.layers:
        return ()
    return tuple(profiles(winner.recipe, material.layers))


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return complete trials with different recipes, the best first, the earlier one of equals."""
    found: dict[str, Trial] = {}
    for trial in sorted(_complete(trials), key=lambda trial: (-trial[1], trial[0].number)):
        found.setdefault(trial[0].recipe_hash or str(trial[0].number), trial[0])
    return list(found.values())


def _complete(trials: Iterable[Trial]) -> list[tuple[Trial, float]]:
    return [(trial, trial.value) for trial in trials if trial.state == "complete" and trial.value is not None]


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
