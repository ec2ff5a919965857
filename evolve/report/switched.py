"""What a search saw of the stages that its genes switch on and off: scores and times with and without each.

It is no experiment. A search asks more often for what did well, and its candidates differ in everything else
too. Only the winner built again without a stage says what the stage is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.report import numbers, sources
from evolve.score.intervals import Interval, welch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.report.collect import Material, Trial

NOTE = (
    "mean with minus mean without: over the candidates of the search, on its items, with Welch's 95 % "
    "interval over candidates. It is no effect of the stage: a search asks more often for what did well, and "
    "candidates differ in everything else too; only the winner built again without a stage says what that "
    "stage is worth. Times are those of a candidate; what an earlier one had trained already costs nothing."
)


@dataclass(frozen=True)
class Switched:
    """What the search saw of a stage that a gene switches.

    Attributes:
        stage: What the names of its genes begin with.
        kind: Such as ``cpt``.
        on: Whether the winner has it.
        candidates: How many different candidates have it, and how many do not.
        means: Mean search score of those with it, and of those without; None for an empty side.
        difference: The first minus the second, or None: a side is empty.
        seconds: Mean time of a candidate with it, and of one without; None where no time is known.
    """

    stage: str
    kind: str
    on: bool
    candidates: tuple[int, int]
    means: tuple[float | None, float | None]
    difference: Interval | None
    seconds: tuple[float | None, float | None]


def switched_stages(
    material: Material, ranked: Sequence[Trial], winner: Trial | None
) -> tuple[Switched, ...]:
    """Return one entry for each stage that a gene switches, in the order of the pipeline.

    A candidate has a stage where it is on and the result depends on it.

    Args:
        material: The run.
        ranked: Complete trials of different recipes.
        winner: One of them, or None.
    """
    from evolve.space.names import prefixes
    from evolve.space.space import derive

    space = derive(material.loaded)
    trials = [trial for trial in ranked if trial.values and trial.value is not None]
    if not space.switches() or not trials:
        return ()
    active = {trial.number: space.active(trial.values) for trial in trials}
    blocks = material.loaded.stages
    kinds = dict(zip(prefixes(blocks), (kind for kind, _ in blocks), strict=True))
    found = []
    for stage in space.switches():
        sides: tuple[list[Trial], list[Trial]] = ([], [])
        for trial in trials:
            sides[stage not in active[trial.number]].append(trial)
        having, lacking = (_values(side) for side in sides)
        found.append(
            Switched(
                stage=stage,
                kind=kinds[stage],
                on=winner is not None and stage in active.get(winner.number, ()),
                candidates=(len(having), len(lacking)),
                means=(_mean(having), _mean(lacking)),
                difference=welch(having, lacking) if len(having) and len(lacking) else None,
                seconds=(_seconds(sides[0]), _seconds(sides[1])),
            )
        )
    return tuple(found)


def _values(trials: Iterable[Trial]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([trial.value for trial in trials if trial.value is not None], dtype=np.float64)


def _seconds(trials: Iterable[Trial]) -> float | None:
    known = [trial.outcome.seconds.get("total") for trial in trials if trial.outcome]
    return _mean(np.array([seconds for seconds in known if seconds is not None]))


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    return float(values.mean()) if len(values) else None


def cells(stages: Sequence[Switched]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table."""
    header = ["stage", "in the winner", "candidates with / without", "mean with", "mean without"]
    header += ["mean with minus mean without", "time with", "time without"]
    rows = []
    for one in stages:
        gap = one.difference
        rows.append(
            [
                one.stage if one.stage == one.kind else f"{one.stage} ({one.kind})",
                "on" if one.on else "off",
                f"{one.candidates[0]} / {one.candidates[1]}",
                *(numbers.number(mean) for mean in one.means),
                numbers.difference(gap.value, gap.low, gap.high) if gap else numbers.MISSING,
                *(numbers.duration(seconds) for seconds in one.seconds),
            ]
        )
    return header, rows


def to_json(stages: Sequence[Switched]) -> list[dict[str, Any]]:
    """Return the table for programs; null is not known."""
    return [
        {
            "stage": one.stage,
            "kind": one.kind,
            "on": one.on,
            "candidates": {"with": one.candidates[0], "without": one.candidates[1]},
            "means": {"with": one.means[0], "without": one.means[1]},
            "difference": None if one.difference is None else sources.ends(one.difference),
            "seconds": {"with": one.seconds[0], "without": one.seconds[1]},
        }
        for one in stages
    ]
