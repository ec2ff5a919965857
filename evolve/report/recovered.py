"""How much of the way from the student to its teacher a distillation has gone, task by task.

(after - before) / (teacher - before), by Fieller's interval for a ratio of paired means (Fieller 1954). Where
it is not clear that teacher and student differ there is no way to go, and no number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evolve.score.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.report.collect import Material
    from evolve.score.objective import Tasks
    from evolve.types import Recipe, TaskScore

_Z = 1.959964
"""Of a 95 % interval."""

NOTE = (
    "gap recovered: (best - student before) / (teacher - student before), paired over items; n/a where it is "
    "not clear that the two differ."
)


@dataclass(frozen=True)
class Distilled:
    """What the last stage of a recipe, a distillation, has begun with.

    Attributes:
        before: Recipe of the student.
        teacher: Recipe of the teacher.
        made: Whether the student is the output of stages, and so no parent.
    """

    before: Recipe
    teacher: Recipe
    made: bool


def distilled(material: Material, recipe: Recipe | None) -> Distilled | None:
    """Return what the distillation at the end of a recipe has begun with.

    None where there is none, where its teacher is no parent, and where the student is cut first: what it was
    then has no score.
    """
    from evolve.space.variants import ablations

    stage = recipe.pipeline[-1] if recipe is not None and recipe.pipeline else {}
    block = stage.get("distill")
    teacher = str(((block or {}).get("teacher") or {}).get("model"))
    if recipe is None or block is None or block.get("student") or teacher not in material.parents:
        return None
    student = str(block.get("model"))
    if student in material.parents and student in material.baselines:
        return Distilled(material.baselines[student], material.baselines[teacher], made=False)
    without = ablations(recipe, 1)
    return Distilled(without[-1].recipes[0], material.baselines[teacher], made=True) if without else None


def recovered(after: Tasks, before: Tasks, teacher: Tasks) -> Mapping[str, Interval | None]:
    """Return the share of each task that all three have, or None where nobody can say."""
    return {
        name: _ratio(task, before[name], teacher[name])
        for name, task in after.items()
        if name in before and name in teacher
    }


def _ratio(after: TaskScore, before: TaskScore, teacher: TaskScore) -> Interval | None:
    common = [key for key in after.items if key in before.items and key in teacher.items]
    if len(common) < 2:
        return None
    a, b, c = (np.array([one.items[key] for key in common]) for one in (after, before, teacher))
    gone, whole = a - b, c - b
    x, y = float(gone.mean()), float(whole.mean())
    covariance = np.cov(gone, whole) / len(common)
    sxx, sxy, syy = float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1])
    if y == 0 or (g := _Z**2 * syy / y**2) >= 1:
        return None
    ratio = x / y
    rest = sxx - 2 * ratio * sxy + ratio**2 * syy - g * (sxx - (sxy**2 / syy if syy else 0.0))
    half = _Z / abs(y) * math.sqrt(max(0.0, rest)) / (1 - g)
    middle = (ratio - (g * sxy / syy if syy else 0.0)) / (1 - g)
    return Interval(ratio, middle - half, middle + half)
