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
    from evolve.score.objective import Tasks
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
class Alone:
    """The winner up to its new tokens, which nothing behind them has trained.

    Attributes:
        score: Its objective over its seeds; None where none could be scored.
        damage: That minus what the stage ``vocab`` was given; None where either could not be scored.
        behind: The winner minus it: what the stages behind are worth; None too where there are none.
        failure: Why it could not be scored, or "".
    """

    score: OverSeeds | None
    damage: Interval | None = None
    behind: Interval | None = None
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
        alone: The extension alone, or None: nobody asked, or the winner adds no tokens.
    """

    drawing: tuple[str, ...] = ()
    seeds: OverSeeds | None = None
    failed: int = 0
    gains: Mapping[str, Interval] | None = None
    stages: tuple[Pays, ...] = ()
    alone: Alone | None = None


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
    held = _Holdout(material, views, score)
    count, asked = score.holdout.seeds, score.holdout.ablations
    own = variants.seeds(recipe, count)
    ours = held.draws(own)
    if not ours:
        return Variants(variants.drawing(recipe))
    gains = {
        entry.label: gain
        for entry in rivals
        if entry is not None
        and (scored := entry.scored("holdout")) is not None
        and (gain := held.gain(ours, [scored.tasks])) is not None
    }
    return Variants(
        drawing=variants.drawing(recipe),
        seeds=held.over_seeds(ours) if len(ours) > 1 else None,
        failed=sum(isinstance(material.outcome(one, "holdout"), Failed) for one in own),
        gains=gains if len(ours) > 1 else None,
        stages=tuple(_pays(held, ours, one) for one in variants.ablations(recipe, count)) if asked else (),
        alone=_alone(held, ours, own, variants.extension(recipe, count)) if asked else None,
    )


class _Holdout:
    """The scores of recipes on the items that are shown, over their seeds."""

    def __init__(self, material: Material, views: Views, score: ScoreConfig) -> None:
        self._material, self._views, self._score = material, views, score
        self._parents = views.parents("holdout")

    def draws(self, recipes: Sequence[Recipe]) -> list[Tasks]:
        """Return the scores of those recipes that have some."""
        outcomes = [self._views.shown(self._material.outcome(one, "holdout")) for one in recipes]
        return [outcome.tasks for outcome in outcomes if isinstance(outcome, Scored)]

    def over_seeds(self, draws: Sequence[Tasks]) -> OverSeeds:
        """Return the objective of a recipe over its draws, at least one."""
        return over_seeds(draws, self._score, self._parents)

    def gain(self, ours: Sequence[Tasks], theirs: Sequence[Tasks]) -> Interval | None:
        """Return how much better the first recipe is, or None where nothing can be compared."""
        if not theirs:
            return None
        try:
            return compare_over_seeds(ours, theirs, self._score, self._parents)
        except ValueError:  # no item in common, as where a scorer names items by the model
            return None

    def failure(self, recipes: Sequence[Recipe]) -> str:
        """Return why none of the recipes could be scored, or "": they were not tried."""
        for recipe in recipes:
            outcome = self._material.outcome(recipe, "holdout")
            if isinstance(outcome, Failed):
                return f"failed: {outcome.kind}"
        return ""


def _pays(held: _Holdout, ours: Sequence[Tasks], ablation: variants.Ablation) -> Pays:
    left = held.draws(ablation.recipes)
    if not left:
        return Pays(ablation.stage, None, None, held.failure(ablation.recipes))
    return Pays(ablation.stage, held.over_seeds(left), held.gain(ours, left))


def _alone(
    held: _Holdout, ours: Sequence[Tasks], own: Sequence[Recipe], new: variants.Extension | None
) -> Alone | None:
    if new is None:
        return None
    made = held.draws(new.alone)
    if not made:
        failure = held.failure(new.alone)
        return Alone(None, failure=failure) if failure else None
    behind = held.gain(ours, made) if new.alone[0].hash != own[0].hash else None
    return Alone(held.over_seeds(made), held.gain(made, held.draws(new.before)), behind)


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


def alone_rows(found: Alone) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the row of the extension alone."""
    score = found.score.mean if found.score else None
    header = ["", "score", "minus what it was given", "the winner minus it"]
    gaps = [
        numbers.difference(*_three(gap)) if gap else numbers.MISSING for gap in (found.damage, found.behind)
    ]
    shown = numbers.interval(*_three(score)) if score else found.failure
    return header, [["extension alone", shown, *gaps]]


def _three(found: Interval) -> tuple[float, float, float]:
    return found.value, found.low, found.high


NOTE = (
    "The winner's recipe built again without each of its stages, which then hands on what it was given; over "
    "the same seeds, on holdout items. An interval around 0 says that nobody can tell whether the stage pays."
)
ALONE_NOTE = (
    "The winner up to its new tokens, before anything behind them has trained: the damage of the extension, "
    "which the stages behind have to make good."
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
        "extension_alone": _alone_json(found.alone) if found.alone else None,
    }


def _alone_json(found: Alone) -> dict[str, Any]:
    return {
        "score": _over(found.score),
        "damage": _ends(found.damage) if found.damage else None,
        "behind": _ends(found.behind) if found.behind else None,
        "failure": found.failure,
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
