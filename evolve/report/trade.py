"""Gain against forgetting: every candidate beside the model that it started from.

Gain is how much better a model is than the start on the tasks of role ``gain``, forgetting how much worse it
is on those of role ``retention``: plain means over the tasks of the paired differences, the sign of metrics
that are better when lower turned. A candidate is on the front where none has both more gain and less
forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from evolve.report import numbers, sources
from evolve.score.forgetting import Change, pareto
from evolve.score.intervals import Interval
from evolve.score.statistics import mean_of, task_compare
from evolve.types import Scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.load import Loaded
    from evolve.config.schema import ScoreConfig
    from evolve.report.collect import Material, Trial
    from evolve.report.views import Entry
    from evolve.types import Role, TaskScore

Mark = Literal["candidate", "winner", "start", "parent", "average"]

NOTE = (
    "gain and forgetting: paired differences to the start on the items of the search, with 95 % intervals "
    "over items. The front was picked by these same items, so it flatters those on it: trust the holdout "
    "where a candidate was scored there."
)


@dataclass(frozen=True)
class Pair:
    """Gain and forgetting of one model on one split, with 95 % intervals."""

    gain: Interval
    forgetting: Interval


@dataclass(frozen=True)
class TradePoint:
    """One model of the picture.

    Attributes:
        name: ``trial N``, or a parent's name.
        mark: What it is.
        number: Its trial, or None.
        recipe: Hash of its recipe.
        search: On the items of the search.
        holdout: On items that had no say in any choice, or None.
        front: Whether no other candidate has both at least its gain and at most its forgetting.
    """

    name: str
    mark: Mark
    number: int | None
    recipe: str
    search: Pair
    holdout: Pair | None = None
    front: bool = False


@dataclass(frozen=True)
class Trade:
    """The picture of gain against forgetting.

    Attributes:
        start: The model that both are counted from.
        tasks: Role to the tasks of that role, each with its metric.
        points: The models, candidates in the order of their trials, then parents and the average.
    """

    start: str
    tasks: Mapping[Role, Mapping[str, str]]
    points: tuple[TradePoint, ...]

    @property
    def front(self) -> tuple[TradePoint, ...]:
        """The candidates on the front, the least gain first."""
        on = (point for point in self.points if point.front)
        return tuple(sorted(on, key=lambda point: point.search.gain.value))

    def about(self, role: Role) -> str:
        """Return what the axis of a role shows, such as ``mean acc of a, b``."""
        metrics = " and ".join(dict.fromkeys(self.tasks[role].values()))
        many = "mean " if len(self.tasks[role]) > 1 else ""
        return f"{many}{metrics} of {', '.join(self.tasks[role])}"


NOTHING = Pair(Interval(0.0, 0.0, 0.0), Interval(0.0, 0.0, 0.0))
"""What a model differs by from itself, exactly."""


def start_of(loaded: Loaded) -> str:
    """Return the model that a candidate's gain is counted from.

    ``score.start``, else the model of ``score.retention``, else the one that the first stage starts from,
    else the first model.
    """
    config = loaded.config
    if config.score is not None and config.score.start is not None:
        return config.score.start
    if config.score is not None and config.score.retention is not None:
        return config.score.retention.model
    for _, block in loaded.stages[:1]:
        for key in ("model", "base_model"):
            if (name := getattr(block, key, None)) in config.models:
                return str(name)
    return next(iter(config.models))


def roles_of(score: ScoreConfig) -> dict[Role, dict[str, str]]:
    """Return role to the tasks of that role, each with its metric; empty where nothing has a role."""
    roles: dict[Role, dict[str, str]] = {}
    for entry in score.counted:
        if entry.role is not None:
            roles.setdefault(entry.role, {})[entry.task] = entry.metric
    return roles


def pair(tasks: Mapping[str, TaskScore], start: Mapping[str, TaskScore], trade: Trade) -> Pair | None:
    """Return gain and forgetting of a model, or None where a task or its items are missing.

    Args:
        tasks: Its scores, with items.
        start: Those of the start on the same items.
        trade: Which tasks have which role.
    """
    better: dict[Role, Interval] = {}
    for role, names in trade.tasks.items():
        if any(name not in tasks or name not in start for name in names):
            return None
        try:
            better[role] = mean_of([task_compare(tasks[name], start[name]) for name in names])
        except ValueError:  # no item in common
            return None
    kept = better["retention"]
    return Pair(better["gain"], Interval(0.0 - kept.value, -kept.high, -kept.low))


def trade_of(
    material: Material, ranked: Sequence[Trial], best: Entry | None, finals: Sequence[Entry]
) -> Trade | None:
    """Return the picture of a run, or None: no task has a role, or the start has no score.

    Args:
        material: The run.
        ranked: Complete trials of different recipes.
        best: The winner, or None.
        finals: Entries whose holdout scores are shown: finalists, parents, average.
    """
    score = material.loaded.config.score
    roles = roles_of(score) if score is not None else {}
    start = start_of(material.loaded)
    began = material.outcome(material.baselines[start], "search")
    if not roles or not isinstance(began, Scored):
        return None
    trade, origin = Trade(start, roles, ()), material.baselines[start].hash
    found: list[TradePoint] = []
    for trial in sorted(ranked, key=lambda trial: trial.number):
        both = pair(trial.scored.tasks, began.tasks, trade) if trial.scored else None
        if both is not None:
            both = NOTHING if trial.recipe_hash == origin else both
            mark: Mark = "winner" if best is not None and trial.recipe_hash == best.recipe else "candidate"
            found.append(TradePoint(f"trial {trial.number}", mark, trial.number, trial.recipe_hash, both))
    front = set(pareto([Change(one.search.gain.value, one.search.forgetting.value) for one in found]))
    points = [replace(point, front=place in front) for place, point in enumerate(found)]
    points += _baselines(material, began, trade)
    return replace(trade, points=tuple(_with_holdout(points, finals, trade)))


def _baselines(material: Material, start: Scored, trade: Trade) -> list[TradePoint]:
    found = []
    for name, recipe in material.baselines.items():
        outcome = material.outcome(recipe, "search")
        both = pair(outcome.tasks, start.tasks, trade) if isinstance(outcome, Scored) else None
        if both is not None:
            parent: Mark = "parent" if name in material.parents else "average"
            mark: Mark = "start" if name == trade.start else parent
            found.append(TradePoint(name, mark, None, recipe.hash, NOTHING if mark == "start" else both))
    return found


def _with_holdout(points: Sequence[TradePoint], finals: Sequence[Entry], trade: Trade) -> list[TradePoint]:
    known = {entry.recipe: scored.tasks for entry in finals if (scored := entry.scored("holdout"))}
    began = next((one.recipe for one in points if one.mark == "start"), "")
    if began not in known:
        return list(points)
    found = []
    for one in points:
        if one.recipe in known:
            held = pair(known[one.recipe], known[began], trade)
            one = replace(one, holdout=NOTHING if one.recipe == began else held)
        found.append(one)
    return found


def cells(trade: Trade, *, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the front, with the winner, the parents and the average below it.

    Args:
        trade: The picture.
        most: Most rows of the front, evenly spread over it; None: all.
    """
    front = list(trade.front)
    if most is not None and len(front) > most:
        step = (len(front) - 1) / (most - 1)
        front = [front[round(place * step)] for place in range(most)]
    others = [point for point in trade.points if point.mark != "candidate" and point not in front]
    shown = [*front, *others]
    header = ["model", "front", "gain", "forgetting"]
    held = any(point.holdout for point in shown)
    header += ["gain (holdout)", "forgetting (holdout)"] if held else []
    rows = []
    for point in shown:
        row = [named(point), _place(point), *pair_cells(point.search)]
        rows.append([*row, *pair_cells(point.holdout)] if held else row)
    return header, rows


def named(point: TradePoint) -> str:
    """Return what a point is called: ``trial 7 (winner)``, ``base (start)``, ``plain average``."""
    if point.mark == "average":
        return "plain average"
    return f"{point.name} ({point.mark})" if point.mark in ("winner", "start") else point.name


def _place(point: TradePoint) -> str:
    if point.front:
        return "on it"
    return "off it" if point.mark == "winner" else numbers.MISSING


def pair_cells(pair: Pair | None) -> list[str]:
    """Return gain and forgetting as they stand in tables."""
    if pair is None:
        return [numbers.MISSING] * 2
    if pair == NOTHING:
        return ["0", "0"]
    return [numbers.difference(one.value, one.low, one.high) for one in (pair.gain, pair.forgetting)]


def to_json(trade: Trade | None) -> dict[str, Any] | None:
    """Return the picture for programs."""
    if trade is None:
        return None
    return {
        "start": trade.start,
        "tasks": {role: dict(tasks) for role, tasks in trade.tasks.items()},
        "points": [
            {
                "name": point.name,
                "mark": point.mark,
                "number": point.number,
                "recipe": point.recipe,
                "front": point.front,
                "search": pair_ends(point.search),
                "holdout": None if point.holdout is None else pair_ends(point.holdout),
            }
            for point in trade.points
        ],
    }


def pair_ends(pair: Pair) -> dict[str, Any]:
    """Return both for programs."""
    return {"gain": sources.ends(pair.gain), "forgetting": sources.ends(pair.forgetting)}
