"""The winner with other seeds, and without each of its stages: what is luck, and which stages pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evolve.report import numbers
from evolve.score.over_seeds import OverSeeds, compare_over_seeds, over_seeds
from evolve.space import variants
from evolve.types import Failed, Scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.report.collect import Material
    from evolve.report.views import Entry, Views
    from evolve.score.intervals import Interval
    from evolve.score.objective import Parents, Tasks
    from evolve.types import Recipe


@dataclass(frozen=True)
class Pays:
    """What a stage of the winner is worth.

    Attributes:
        stage: The stage that was left out.
        without: The objective of what is left, over its seeds; None where none could be scored.
        gain: The winner minus that, over the seeds of both; None likewise.
        failure: Why it could not be scored, or "".
    """

    stage: str
    without: OverSeeds | None
    gain: Interval | None
    failure: str = ""


@dataclass(frozen=True)
class Variants:
    """The winner's recipe built again. All on the items of the holdout that had no say in the choice.

    Attributes:
        drawing: Stages of the winner whose result depends on a seed.
        seeds: The objective over the seeds that were scored, or None with fewer than two.
        failed: Seeds that could not be built or scored.
        gains: Name of a baseline to the winner minus it, over the seeds.
        stages: What each stage is worth; empty where nobody asked for it.
    """

    drawing: tuple[str, ...] = ()
    seeds: OverSeeds | None = None
    failed: int = 0
    gains: Mapping[str, Interval] | None = None
    stages: tuple[Pays, ...] = ()


def variants_of(
    material: Material, views: Views, recipe: Recipe | None, rivals: Sequence[Entry | None]
) -> Variants:
    """Return what is known of the winner's variants.

    Args:
        material: The run.
        views: Says which items are shown.
        recipe: The winner, or None.
        rivals: Baselines to hold it against.
    """
    score = material.loaded.config.score
    if recipe is None or score is None:
        return Variants()
    parents, count = views.parents("holdout"), score.holdout.seeds

    def draws(recipes: Sequence[Recipe]) -> list[Scored]:
        outcomes = [views.shown(material.outcome(one, "holdout")) for one in recipes]
        return [outcome for outcome in outcomes if isinstance(outcome, Scored)]

    own = variants.seeds(recipe, count)
    built = draws(own)
    if not built:
        return Variants(variants.drawing(recipe))
    ours = [outcome.tasks for outcome in built]
    gains = {
        entry.label: gain
        for entry in rivals
        if entry is not None
        and (scored := entry.scored("holdout")) is not None
        and (gain := _gain(ours, [scored.tasks], score, parents)) is not None
    }
    stages = []
    for ablation in variants.ablations(recipe, count) if score.holdout.ablations else ():
        left = draws(ablation.recipes)
        if not left:
            stages.append(Pays(ablation.stage, None, None, _failure(material, ablation.recipes)))
            continue
        theirs: list[Tasks] = [outcome.tasks for outcome in left]
        gain = _gain(ours, theirs, score, parents)
        stages.append(Pays(ablation.stage, over_seeds(theirs, score, parents), gain))
    return Variants(
        drawing=variants.drawing(recipe),
        seeds=over_seeds(ours, score, parents) if len(ours) > 1 else None,
        failed=sum(isinstance(material.outcome(one, "holdout"), Failed) for one in own),
        gains=gains if len(ours) > 1 else None,
        stages=tuple(stages),
    )


def facts(found: Variants) -> list[tuple[str, str]]:
    """Return ``(label, text)`` for the lines below the closing table."""
    if found.seeds is None:
        if not found.drawing:
            return []
        others = f"{found.failed} other seeds failed" if found.failed else "other seeds are not scored"
        return [
            (
                "one draw",
                f"{', '.join(found.drawing)} draws at random: intervals describe this seed; {others}",
            )
        ]
    mean, values = found.seeds.mean, found.seeds.values
    lines = [
        (
            f"the recipe over {len(values)} seeds",
            f"mean {numbers.interval(mean.value, mean.low, mean.high)}, from {min(values):.4f} to "
            f"{max(values):.4f} (standard deviation {found.seeds.spread:.4f})"
            + (f"; {found.failed} more failed" if found.failed else ""),
        )
    ]
    for name, gain in (found.gains or {}).items():
        lines.append((f"over seeds, minus {name}", numbers.difference(gain.value, gain.low, gain.high)))
    return lines


def rows(found: Variants) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table of stages: what the winner is without each, what it is worth."""
    header = ["stage", "without it", "what it adds"]
    cells = []
    for one in found.stages:
        mean, gain = one.without.mean if one.without else None, one.gain
        without = numbers.interval(mean.value, mean.low, mean.high) if mean else one.failure
        adds = numbers.difference(gain.value, gain.low, gain.high) if gain else numbers.MISSING
        cells.append([one.stage, without or numbers.MISSING, adds])
    return header, cells


NOTE = (
    "The winner's recipe built again without each of its stages, which then hands on what it was given; over "
    "the same seeds, on holdout items. An interval around 0 says that nobody can tell whether the stage pays."
)


def to_json(found: Variants) -> dict[str, Any]:
    """Return the variants as JSON without NaN."""
    return {
        "drawing": list(found.drawing),
        "seeds": _over(found.seeds),
        "failed": found.failed,
        "gains": {name: _ends(gain) for name, gain in (found.gains or {}).items()},
        "stages": [
            {
                "stage": one.stage,
                "without": _over(one.without),
                "gain": _ends(one.gain) if one.gain else None,
                "failure": one.failure,
            }
            for one in found.stages
        ],
    }


def _over(found: OverSeeds | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"values": list(found.values), "spread": numbers.finite(found.spread), **_ends(found.mean)}


def _ends(found: Interval) -> dict[str, Any]:
    return {
        "value": numbers.finite(found.value),
        "low": numbers.finite(found.low),
        "high": numbers.finite(found.high),
    }


def _gain(
    ours: Sequence[Tasks], theirs: Sequence[Tasks], score: ScoreConfig, parents: Parents | None
) -> Interval | None:
    try:
        return compare_over_seeds(ours, theirs, score, parents)
    except ValueError:  # no item in common, as where a scorer names items by the model: nothing to compare
        return None


def _failure(material: Material, recipes: Sequence[Recipe]) -> str:
    for recipe in recipes:
        outcome = material.outcome(recipe, "holdout")
        if isinstance(outcome, Failed):
            return f"failed: {outcome.kind}"
    return ""
