"""Which stages pay: of a search in which genes switch stages on and off.

Two numbers for each such stage. The winner without the stage, built with the same seed and scored on the
same holdout items, is the one to believe. The mean of the candidates with the stage minus the mean of those
without is what the search saw: no experiment, since a search asks more often for what did well, and its
candidates differ in everything else too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.report import numbers, sources
from evolve.score.intervals import Interval, welch
from evolve.types import Failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.report.collect import Material, Trial
    from evolve.report.views import Entry, Views
    from evolve.score.statistics import Comparison, Verdict
    from evolve.types import Outcome

NOTE = (
    "winner minus winner without it: the same recipe with the stage off, same seed, same holdout items; the "
    "rest of the recipe was tuned with the stage on, and the interval describes these two checkpoints. "
    "mean with minus mean without: over the candidates of the search, on its items; no effect of the stage, "
    "since a search asks more often for what did well and candidates differ in everything else too. Time is "
    "that of a candidate; an output that an earlier one had trained already costs nothing again."
)

_VERDICTS: dict[Verdict, str] = {"better": "pays", "worse": "harms", "cannot tell": "cannot tell"}


@dataclass(frozen=True)
class StageWorth:
    """What a stage that genes switch is worth, and what it costs.

    Attributes:
        stage: What the names of its genes begin with.
        kind: Such as ``cpt``.
        on: Whether the winner has it.
        ablated: The winner minus the winner without it, on the holdout; None where there is no such number.
        variant: What came of the winner without it, or None: it was not built.
        candidates: How many different candidates have it, and how many do not.
        difference: Mean search score of those with it minus that of those without, or None: a side is empty.
        seconds: Mean time of a candidate with it, and of one without; None where no time is known.
    """

    stage: str
    kind: str
    on: bool
    ablated: Comparison | None
    variant: Outcome | None
    candidates: tuple[int, int]
    difference: Interval | None
    seconds: tuple[float | None, float | None]

    @property
    def verdict(self) -> str:
        """``pays``, ``harms`` or ``cannot tell`` by the winner without it, or why nobody asked."""
        if not self.on:
            return "off in the winner"
        if self.ablated is not None:
            return _VERDICTS[self.ablated.verdict]
        return f"failed: {self.variant.kind}" if isinstance(self.variant, Failed) else "not built"


def stages_worth(
    material: Material, views: Views, best: Entry | None, ranked: Sequence[Trial]
) -> tuple[StageWorth, ...]:
    """Return one entry for each stage that a gene switches, in the order of the pipeline.

    Args:
        material: The run.
        views: Its entries.
        best: The winner, or None.
        ranked: Complete trials of different recipes.
    """
    from evolve.space.names import prefixes
    from evolve.space.space import derive

    space, loaded = derive(material.loaded), material.loaded.stages
    trials = [trial for trial in ranked if trial.values and trial.value is not None]
    if not space.switches() or not trials:
        return ()
    without = {trial.number: space.without(trial.values, material.contents) for trial in trials}
    kinds = dict(zip(prefixes(loaded), (kind for kind, _ in loaded), strict=True))
    found = []
    for stage in space.switches():
        having = [trial for trial in trials if stage in without[trial.number]]
        lacking = [trial for trial in trials if stage not in without[trial.number]]
        recipe = without.get(best.number, {}).get(stage) if best and best.number is not None else None
        entry = views.against(best, views.variant(f"without {stage}", recipe)) if recipe else None
        found.append(
            StageWorth(
                stage=stage,
                kind=kinds[stage],
                on=recipe is not None,
                ablated=entry.gaps.get("holdout") if entry else None,
                variant=entry.holdout if entry else None,
                candidates=(len(having), len(lacking)),
                difference=welch(_values(having), _values(lacking)) if having and lacking else None,
                seconds=(_seconds(having), _seconds(lacking)),
            )
        )
    return tuple(found)


def _values(trials: Iterable[Trial]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([trial.value for trial in trials if trial.value is not None], dtype=np.float64)


def _seconds(trials: Iterable[Trial]) -> float | None:
    known = [trial.outcome.seconds["total"] for trial in trials if trial.outcome and trial.outcome.seconds]
    return sum(known) / len(known) if known else None


def cells(stages: Sequence[StageWorth]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table."""
    header = ["stage", "verdict", "winner minus winner without it", "candidates with / without"]
    header += ["mean with minus mean without", "time with", "time without"]
    return header, [
        [
            one.stage if one.stage == one.kind else f"{one.stage} ({one.kind})",
            one.verdict,
            numbers.difference(one.ablated.difference, one.ablated.low, one.ablated.high)
            if one.ablated
            else numbers.MISSING,
            f"{one.candidates[0]} / {one.candidates[1]}",
            numbers.difference(one.difference.value, one.difference.low, one.difference.high)
            if one.difference
            else numbers.MISSING,
            numbers.duration(one.seconds[0]),
            numbers.duration(one.seconds[1]),
        ]
        for one in stages
    ]


def to_json(stages: Sequence[StageWorth]) -> list[dict[str, Any]]:
    """Return the table for programs; null is not known."""
    return [
        {
            "stage": one.stage,
            "kind": one.kind,
            "on": one.on,
            "verdict": one.verdict,
            "ablation": None if one.ablated is None else _ends(one.ablated),
            "candidates": {"with": one.candidates[0], "without": one.candidates[1]},
            "difference": None if one.difference is None else sources.ends(one.difference),
            "seconds": {"with": one.seconds[0], "without": one.seconds[1]},
        }
        for one in stages
    ]


def _ends(found: Comparison) -> dict[str, Any]:
    whole = Interval(found.difference, found.low, found.high)
    return {**sources.ends(whole), "verdict": found.verdict, "items": found.items}
