"""The table of models: what each one does on every task, and what it keeps of each parent.

A row is a model: its tasks with intervals, the share that it keeps of each parent's skill, the weighted mean
of its metrics, its size and its speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evolve.report import numbers
from evolve.report.recovered import NOTE as RECOVERED
from evolve.report.recovered import recovered
from evolve.score.intervals import Interval, task_interval
from evolve.score.statistics import interval, kept, kept_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.objective import Parents, Tasks
    from evolve.types import Scored

NOTE = (
    "average: weighted mean of the metrics. keeps of X: how much of what X has above chance the model has "
    "too, gains on one task not counted against losses on another; n/a where X is nowhere above chance. "
    "items/s: one measurement, with whatever else the machine did."
)


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: Number of weights.
        bytes: Of its weights on the disk.
    """

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Measured:
    """A model with its scores.

    Attributes:
        label: How the table calls it.
        scored: Its scores.
        size: Its size, or None.
        speed: Items that the engine answered in a second, or None.
        best: Whether it is the one to look at.
    """

    label: str
    scored: Scored
    size: Size | None = None
    speed: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: The model.
        tasks: Task to its metric with the 95 % interval.
        kept: Parent to the share of its skill that the model keeps, None where the parent has none.
        kept_tasks: Parent to (model - chance) / (parent - chance) on each task where it has any skill.
        average: The weighted mean of the metrics.
        size: Its size, or None.
        speed: Items a second, or None.
        best: Whether it is the one to look at.
        recovered: Task to how much of the gap to its teacher the best has closed, None where nobody can say;
            empty where nothing was distilled, and for all others.
    """

    label: str
    tasks: Mapping[str, Interval]
    kept: Mapping[str, Interval | None]
    kept_tasks: Mapping[str, Mapping[str, Interval]]
    average: Interval
    size: Size | None
    speed: float | None
    best: bool
    recovered: Mapping[str, Interval | None] = field(default_factory=dict)


def speed_of(scored: Scored) -> float | None:
    """Return how many items were answered in a second, or None where the time is not known."""
    seconds = scored.seconds.get("score")
    items = sum(len(task.items) for task in scored.tasks.values())
    return items / seconds if seconds and items else None


def sources(
    models: Sequence[Measured],
    parents: Parents,
    config: ScoreConfig,
    gap: tuple[Tasks, Tasks] | None = None,
) -> tuple[Row, ...]:
    """Return the rows of the table.

    Args:
        models: The models, in the order of the rows.
        parents: Name to the scores of each parent, on the same items.
        config: Tasks and weights.
        gap: Scores of the student before the best was distilled from it, and those of its teacher.
    """
    return tuple(
        Row(
            label=model.label,
            tasks={name: task_interval(task) for name, task in model.scored.tasks.items()},
            kept={name: kept(model.scored.tasks, tasks, config) for name, tasks in parents.items()},
            kept_tasks={name: _on_tasks(model.scored.tasks, tasks) for name, tasks in parents.items()},
            average=interval(model.scored.tasks, config),
            size=model.size,
            speed=model.speed,
            best=model.best,
            recovered=recovered(model.scored.tasks, *gap) if gap is not None and model.best else {},
        )
        for model in models
    )


def _on_tasks(tasks: Tasks, parent: Tasks) -> dict[str, Interval]:
    found = {name: kept_on(task, parent[name]) for name, task in tasks.items() if name in parent}
    return {name: one for name, one in found.items() if one is not None}


def cells(rows: Sequence[Row], metrics: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table.

    Args:
        rows: The models.
        metrics: Task to the name of its metric.
    """
    parents = list(rows[0].kept) if rows else []
    header = ["model", *(f"{task} ({metric})" for task, metric in metrics.items())]
    gaps = list(dict.fromkeys(task for row in rows for task in row.recovered if task in metrics))
    header += [*(f"keeps of {name}" for name in parents), *(f"gap recovered ({task})" for task in gaps)]
    header += ["average", "parameters", "size", "items/s"]
    lines = []
    for row in rows:
        line = [row.label, *(_score(row.tasks.get(task)) for task in metrics)]
        line += [percent(row.kept[name]) for name in parents]
        line += [percent(row.recovered[task]) if row.recovered else numbers.MISSING for task in gaps]
        line += [_score(row.average)]
        line += [count(row.size.parameters), numbers.size(row.size.bytes)] if row.size else ["-", "-"]
        line.append("-" if row.speed is None else f"{row.speed:.3g}")
        lines.append(line)
    return header, lines


def note(rows: Sequence[Row]) -> str:
    """Return what the columns mean."""
    return f"{NOTE} {RECOVERED}" if any(row.recovered for row in rows) else NOTE


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table for programs; null is n/a or not known."""
    return [
        {
            "model": row.label,
            "tasks": {name: ends(found) for name, found in row.tasks.items()},
            "kept": {name: None if found is None else ends(found) for name, found in row.kept.items()},
            "kept_tasks": {
                name: {task: ends(one) for task, one in found.items()}
                for name, found in row.kept_tasks.items()
            },
            **(
                {"gap_recovered": {name: one and ends(one) for name, one in row.recovered.items()}}
                if row.recovered
                else {}
            ),
            "average": ends(row.average),
            "parameters": row.size.parameters if row.size else None,
            "bytes": row.size.bytes if row.size else None,
            "items_per_second": row.speed,
        }
        for row in rows
    ]


def ends(found: Interval) -> dict[str, float | None]:
    """Return an interval as JSON, without infinities."""
    return {
        "value": numbers.finite(found.value),
        "low": numbers.finite(found.low),
        "high": numbers.finite(found.high),
    }


def percent(found: Interval | None) -> str:
    """Return ``97 % [91, 104]``, or ``n/a`` where there is no skill to keep."""
    if found is None:
        return "n/a"
    value, low, high = (round(100 * end) for end in (found.value, found.low, found.high))
    return f"{value} % [{low}, {high}]"


def count(number: int) -> str:
    """Return ``135 M``, ``1.24 B`` or ``9,312``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size or (number >= size and unit != "k"):
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def _score(found: Interval | None) -> str:
    return numbers.interval(found.value, found.low, found.high) if found else numbers.MISSING
