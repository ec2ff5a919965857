"""Where mergekit 0.1.5 is wrong: merges for which a formula in float64 says what is right.

Each has a letter, by which mergekit_parity.py marks what it concerns, and a row in docs/merge-methods.md. The
formulas are those of the tests: written from the papers, element by element or vector by vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from parity_cases import Recipe, dense, merge, weighted

from tests.stages.merge import reference as plain
from tests.stages.merge import reference_more as more

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Formula = Callable[["Place"], Array]


@dataclass(frozen=True)
class Place:
    """One tensor: the values of every model, and the numbers that decide what stays of it."""

    models: Mapping[str, Array]
    words: Callable[[str], NDArray[np.int64]]

    @property
    def base(self) -> Array:
        """The base's values."""
        return self.models["base"]

    def of(self, *names: str) -> list[Array]:
        """Return the values of these models."""
        return [self.models[name] for name in names]


@dataclass(frozen=True)
class Defect:
    """A merge in which mergekit is wrong, or fails.

    Attributes:
        letter: Stands for what is wrong.
        recipe: What is merged.
        formula: What is right, for each tensor.
        inject: As in a case.
    """

    letter: str
    recipe: Recipe
    formula: Formula
    inject: str = ""


WRONG = {
    "a": "float32 numbers that nearly cancel out decide which weights are taken",
    "b": "with normalize and weights of both signs it divides by their signed sum",
    "c": "what stays is scaled to the L1 norm before, not divided by its probability",
    "d": "an error where density plus or minus epsilon is outside of 0 to 1",
    "e": "keeps nothing where density times the number of elements is below 1",
    "f": "equal weights for small changes",
    "g": "rows are columns",
    "h": "a zero task vector stands at right angles to the other",
    "i": "an error where three models leave a tensor as it is",
    "j": "the base comes out for small changes",
    "k": "extrapolates where task vectors oppose each other",
    "l": "an error, or chance, for rows of one element: its rows are those of the second axis",
}
"""What is wrong, by letter."""

MENDED = {
    "a": "the table has its float64",
    "c": "the division by the probability is injected",
    "g": "it is asked for the opposite",
    "l": "this tensor is left to the formula",
}
"""What is done about it where the two are compared with each other."""

# Arithmetic in float32 alone; in float64 mergekit is right.
ONLY_FLOAT32 = {"arcee_fusion": "a"}
# Tensors that mergekit cannot merge at all.
LEFT_OUT = {("della", "mamba"): ("conv1d.weight", "l"), ("della_linear", "mamba"): ("conv1d.weight", "l")}
# The method means the opposite of what it says; the cases ask mergekit for the opposite.
TURNED = {"nuslerp": "g"}


def defects() -> list[Defect]:
    """Return them all."""
    return [*_signs(), *_random(), *_others()]


def _flat(formula: Callable[..., list[float]], place: Place, names: tuple[str, ...], *values: Any) -> Array:
    vectors = [model.ravel().tolist() for model in place.of(*names)]
    result = formula(place.base.ravel().tolist(), vectors, *values)
    return np.array(result, dtype=np.float64).reshape(place.base.shape)


def _outliers(density: float, gamma: float) -> Callable[[int, Array], Array]:
    return lambda _, delta: more.breadcrumb(delta, density, gamma)


def _signs() -> list[Defect]:
    pair = {"one": {"weight": 0.50}, "against": {"weight": -0.49}}
    names, weights = ("one", "against"), [0.50, -0.49]

    def ties(place: Place) -> Array:
        return _flat(plain.ties, place, names, weights, [1.0, 1.0])

    def crumbs(place: Place) -> Array:
        models = place.of(*names)
        return more.sparse(place.base, models, weights, _outliers(0.8, 0.05), plain.elect, 1.0, True)

    outliers = {"density": 0.8, "gamma": 0.05, "normalize": True}
    return [
        Defect("b", merge("ties", pair, "base"), ties),
        Defect("b", merge("dare_ties", pair, "base", normalize=True), ties),
        Defect("b", merge("della", pair, "base"), ties),
        Defect("b", merge("breadcrumbs_ties", pair, "base", **outliers), crumbs),
    ]


def _random() -> list[Defect]:
    names, weights, densities, epsilon = ("one", "two"), (0.7, 0.4), (0.5, 0.3), 0.15
    models = dense(weights, densities)
    wide = dense(weights, (0.9, 0.1))

    def dare(place: Place, combine: Callable[..., list[float]]) -> Array:
        masks = [
            (place.words(name).ravel() < round(density * 2**32)).tolist()
            for name, density in zip(names, densities, strict=True)
        ]
        return _flat(plain.dare, place, names, list(weights), list(densities), masks, combine)

    def della(
        place: Place, combine: Callable[..., list[float]], normalize: bool, share: tuple[float, ...]
    ) -> Array:
        def prune(i: int, delta: Array) -> Array:
            return more.magprune(delta, share[i], epsilon, place.words(names[i]).ravel().tolist())

        return more.sparse(place.base, place.of(*names), list(weights), prune, combine, 1.0, normalize)

    elected = partial(della, combine=plain.elect, normalize=True)
    added = partial(della, combine=plain.add, normalize=False)
    return [
        Defect("c", merge("dare_linear", models, "base"), partial(dare, combine=plain.add), "words"),
        Defect("c", merge("dare_ties", models, "base"), partial(dare, combine=plain.elect), "words"),
        Defect("c", merge("della", models, "base"), partial(elected, share=densities), "words"),
        Defect("c", merge("della_linear", models, "base"), partial(added, share=densities), "words"),
        Defect("d", merge("della", wide, "base"), partial(elected, share=(0.9, 0.1)), "words"),
        Defect("d", merge("della_linear", wide, "base"), partial(added, share=(0.9, 0.1)), "words"),
    ]


def _others() -> list[Defect]:
    few = dense((0.7,), (0.02,))
    small: dict[str, dict[str, Any]] = {"near": {}, "nearer": {}}
    rows = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    frozen = {name: {"weight": weight} for name, weight in (("three", 0.2), ("near", 0.5), ("nearer", 0.3))}
    pair = {"one": {"weight": 0.4}, "three": {"weight": 0.6}}
    opposed: dict[str, dict[str, Any]] = {"one": {}, "against": {}}

    def crumb(place: Place, combine: Callable[..., list[float]]) -> Array:
        return more.sparse(place.base, place.of("one"), [0.7], _outliers(0.02, 0.01), combine)

    return [
        Defect("e", merge("breadcrumbs", few, "base"), partial(crumb, combine=plain.add)),
        Defect("e", merge("breadcrumbs_ties", few, "base"), partial(crumb, combine=plain.elect)),
        Defect("f", merge("sce", small, "base"), lambda p: more.sce(p.base, p.of(*small))),
        Defect(
            "g",
            merge("nuslerp", weighted(0.3, 0.7), **rows),
            lambda p: more.nuslerp(p.of("one", "two"), [0.3, 0.7], None, "rows"),
        ),
        Defect(
            "h",
            merge("nuslerp", pair, "base"),
            lambda p: more.nuslerp(p.of("one", "three"), [0.4, 0.6], p.base),
        ),
        Defect(
            "i",
            merge("multislerp", frozen, "base"),
            lambda p: more.multislerp(p.of(*frozen), [0.2, 0.5, 0.3], p.base),
        ),
        Defect("j", merge("model_stock", small, "base"), lambda p: more.model_stock(p.base, p.of(*small))),
        Defect(
            "k", merge("model_stock", opposed, "base"), lambda p: more.model_stock(p.base, p.of(*opposed))
        ),
        Defect(
            "a",
            merge("arcee_fusion", {"near": {}}, "base"),
            lambda p: more.arcee_fusion(p.base, p.models["near"]),
        ),
    ]
