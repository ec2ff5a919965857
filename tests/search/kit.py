"""A search to be disturbed: a mixed space, a landscape that fails here and there, and what a study holds."""

from __future__ import annotations

import hashlib
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.registry import SAMPLERS
from evolve.search.study_searcher import StudySearcher
from evolve.space.genes import Gene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna

    from evolve.search.base import Searcher

MIXED = (
    Gene("cpt.enabled", 0, 1, step=1, choices=(False, True)),
    Gene("merge.math.weight", 0.0, 1.5),
    Gene("cpt.learning_rate", 1e-5, 1e-3, log=True),
    Gene("merge.density", 0.1, 0.9, step=0.1),
    Gene("merge.fixed", 0.25, 0.25),
    Gene("cpt.schedule", 0, 2, step=1, choices=("cosine", "linear", "constant")),
    Gene("ünï.çødé name", -1.0, 1.0),
)

POPULATION = 4


def centre(genes: Sequence[Gene]) -> dict[str, float]:
    return {gene.name: gene.centre() for gene in genes}


def searcher(
    study: optuna.Study,
    sampler: str,
    genes: Sequence[Gene] = MIXED,
    *,
    population: int = POPULATION,
    seed: int = 7,
) -> StudySearcher:
    factory = SAMPLERS.load(sampler)
    return StudySearcher(study, genes, factory, population=population, seed=seed, centre=centre(genes))


def value_of(number: int, values: dict[str, float], failing: float = 0.15) -> float | None:
    """Score a point: a smooth hill, with some trials that fail. Depends on nothing but the point."""
    text = repr((number, sorted(values.items())))
    if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 1000 < 1000 * failing:
        return None
    hill = -((values["merge.math.weight"] - 1.1) ** 2) - abs(values["merge.density"] - 0.3)
    return hill + 0.3 * values["cpt.enabled"] - 0.1 * abs(values["cpt.schedule"] - 1)


def recipe_of(values: dict[str, float]) -> str:
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]


def drive(
    search: Searcher, trials: int, value: Callable[[int, dict[str, float]], float | None] = value_of
) -> None:
    """Search until ``trials`` are complete; tells come in another order than asks."""
    while (progress := search.progress()).complete < trials:
        proposals = search.round(min(progress.missing, trials - progress.complete))
        random.Random(len(proposals)).shuffle(proposals)
        for proposal in proposals:
            values = dict(proposal.values)
            search.tell(proposal.number, value(proposal.number, values), recipe=recipe_of(values))


def contents(study: optuna.Study) -> list[tuple[Any, ...]]:
    """Return everything of a study that must not depend on kills. Floats compare bit by bit."""
    return [
        (
            trial.number,
            trial.state.name,
            trial.value,
            tuple((name, repr(value)) for name, value in trial.params.items()),
            trial.user_attrs,
            attributes(trial.system_attrs),
        )
        for trial in study.get_trials(deepcopy=False)
    ]


def attributes(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return system attributes, the optimizer's pickle as what it holds."""
    pieces = {key: value for key, value in attrs.items() if ":optimizer:" in key}
    found = {key: value for key, value in attrs.items() if key not in pieces}
    if pieces:
        prefix = next(iter(pieces)).rpartition(":")[0]
        text = "".join(pieces[f"{prefix}:{index}"] for index in range(len(pieces)))
        found["optimizer"] = state(pickle.loads(bytes.fromhex(text)))
    return found


def state(value: Any) -> Any:
    # The generator is seeded at each ask, and the history is a ring of which a part was never written.
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "__dict__"):
        return {
            key: state(item) for key, item in vars(value).items() if key not in ("_rng", "_funhist_values")
        }
    return repr(value)
