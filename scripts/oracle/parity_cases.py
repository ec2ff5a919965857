"""What mergekit_parity.py merges: every method with several sets of parameters, gradients and filters.

``{attention}`` and ``{rest}`` stand for parts of the names of an architecture's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One merge, in which mergekit is right.

    Attributes:
        name: Of its parameters.
        recipe: What we merge.
        theirs: Parameters of the whole merge that have another value in mergekit.
        inject: What mergekit is given of ours: nothing, the random numbers, or those and the division of what
            stays by its probability.
    """

    name: str
    recipe: Recipe
    theirs: dict[str, Any] = field(default_factory=dict)
    inject: Literal["", "words", "divide"] = ""

    @property
    def method(self) -> str:
        """Name of the merge method."""
        return str(self.recipe["merge_method"])


def merge(method: str, models: dict[str, dict[str, Any]], base: str | None = None, **shared: Any) -> Recipe:
    """Return a recipe. ``factor`` stands for ``lambda``."""
    recipe: Recipe = {
        "merge_method": method,
        "models": [
            {"model": name, "parameters": own} if own else {"model": name} for name, own in models.items()
        ],
    }
    if base is not None:
        recipe["base_model"] = base
    if shared:
        recipe["parameters"] = {"lambda" if key == "factor" else key: value for key, value in shared.items()}
    return recipe


RISE = [0.1, 0.9, 0.4]
ONE_TWO: dict[str, dict[str, Any]] = {"one": {}, "two": {}}
ALL: dict[str, dict[str, Any]] = {**ONE_TWO, "three": {}}


def mixed(attention: str, rest: str, *values: Any) -> list[dict[str, Any]]:
    """Return filters: values of attention, of what follows it, and of all else."""
    return [
        {"filter": attention, "value": values[0]},
        {"filter": rest, "value": values[1]},
        {"value": values[2]},
    ]


def weighted(*weights: Any) -> dict[str, dict[str, Any]]:
    """Return the first models with these weights."""
    return {name: {"weight": weight} for name, weight in zip(ALL, weights, strict=False)}


def dense(weights: tuple[Any, ...], densities: tuple[Any, ...], **more: Any) -> dict[str, dict[str, Any]]:
    """Return the first models with these weights and densities, and ``more`` for each."""
    return {
        name: {"weight": weight, "density": density, **{key: values[i] for key, values in more.items()}}
        for i, (name, weight, density) in enumerate(zip(ALL, weights, densities, strict=False))
    }


def cases(attention: str, rest: str) -> Iterator[Case]:
    """Yield every case for an architecture with such names."""
    for make in (_means, _arcs, _directions, _sums, _ties, _dare, _della, _breadcrumbs, _consensus, _pairs):
        yield from make(attention, rest)


def _means(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.8, 0.2], 0.3, 0.6)
    yield Case("scalars", merge("linear", weighted(1.0, 0.5, 2.0)))
    yield Case("gradient, filters", merge("linear", weighted(RISE, filters, 0.7)))
    switch = [{"filter": rest, "value": False}, {"value": True}]
    models = {**weighted(RISE, 0.5), "base": {"weight": -0.3}}
    yield Case("sum in places", merge("linear", models, "base", normalize=switch))
    yield Case("as it is", merge("passthrough", {"one": {}}))
    yield Case("scaled", merge("passthrough", {"one": {"scale": mixed(attention, rest, RISE, 0.0, -1.5)}}))


def _arcs(attention: str, rest: str) -> Iterator[Case]:
    opposed = mixed(attention, rest, [0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0], 0.5)
    yield Case("scalar", merge("slerp", {"one": {}}, "base", t=0.3))
    yield Case("gradient", merge("slerp", {"one": {}, "two": {}}, "two", t=RISE))
    yield Case("filters", merge("slerp", {"base": {}, "three": {}}, "base", t=opposed))
    yield Case("scalars", merge("nuslerp", weighted(1.0, 0.5)))
    yield Case("task vectors", merge("nuslerp", weighted(RISE, 0.4), "base"))
    yield Case("outside", merge("nuslerp", weighted(mixed(attention, rest, -0.2, 1.5, 0.3), 1.0), "base"))
    for rows in (True, False):
        own, theirs = {"nuslerp_flatten": False, "nuslerp_row_wise": rows}, {"nuslerp_row_wise": not rows}
        name = "rows" if rows else "columns"
        yield Case(name, merge("nuslerp", weighted(0.3, RISE), **own), theirs)
        yield Case(f"{name}, task vectors", merge("nuslerp", weighted(0.3, RISE), "base", **own), theirs)


def _directions(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.8, 0.2], 0.3, 0.6)
    yield Case("scalars", merge("multislerp", weighted(1.0, 0.5, 2.0)))
    yield Case("task vectors", merge("multislerp", weighted(RISE, filters, 0.7), "base"))
    yield Case("sum", merge("multislerp", weighted(RISE, 0.5), "base", normalize_weights=False, eps=1e-6))
    yield Case("defaults", merge("karcher", ALL))
    yield Case("two", merge("karcher", ONE_TWO))
    yield Case("few steps", merge("karcher", ALL, "two", max_iter=2, tol=1e-9))


def _sums(attention: str, rest: str) -> Iterator[Case]:
    fallback = {**weighted(RISE), "two": {"weight": [{"filter": attention, "value": 1.5}]}}
    name = "task_arithmetic"
    yield Case("scalars", merge(name, weighted(0.4, 0.7, 0.3), "base"))
    yield Case("gradient, lambda", merge(name, weighted(RISE, -0.5), "base", factor=[0.5, 1.5]))
    yield Case("normalize", merge(name, weighted(RISE, 0.5, 0.2), "base", normalize=True, int8_mask=True))
    yield Case("filter, fallback", merge(name, fallback, "base", weight=-0.05, normalize=False))


def _ties(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.8, 0.2], 0.3, 1.0)
    yield Case("whole", merge("ties", weighted(1.0, 0.5, 0.7), "base"))
    yield Case("scalars", merge("ties", dense((1.0, 0.5, 0.7), (0.5, 0.3, 0.7)), "base", int8_mask=True))
    yield Case("gradients, filters", merge("ties", dense((RISE, 0.6), ([0.2, 0.9], filters)), "base"))
    models = {**weighted(0.4, -0.3), "base": {}}
    yield Case(
        "sum, rescale",
        merge("ties", models, "base", density=[1.0, 0.1], normalize=False, rescale=True, factor=0.7),
    )


def _dare(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.8, 0.2], 0.3, 1.0)
    for name in ("dare_linear", "dare_ties"):
        two = dense((RISE, 0.4), (0.5, 0.3))
        yield Case("scalars", merge(name, two, "base"), inject="divide")
        yield Case(
            "gradients, filters",
            merge(name, dense((0.5, RISE, 0.6), ([0.2, 0.9], filters, 0.6)), "base", factor=[0.5, 1.2]),
            inject="divide",
        )
        plain = {"rescale": False, "normalize": True}
        yield Case("as thinned, normalize", merge(name, two, "base", **plain), inject="words")
        yield Case("density 1", merge(name, dense((0.3, 0.6), (1.0, 0.0)), "base"), inject="words")


def _della(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.7, 0.2], 0.3, 1.0)
    for name in ("della", "della_linear"):
        two = dense((RISE, 0.4), (0.5, 0.3))
        yield Case("defaults", merge(name, two, "base"), inject="divide")
        yield Case(
            "gradients, filters",
            merge(
                name,
                dense((0.5, RISE, 0.6), ([0.3, 0.7], filters, 0.6), epsilon=(0.2, [0.1, 0.05], 0.0)),
                "base",
                factor=[0.5, 1.2],
            ),
            inject="divide",
        )
        plain = {"rescale": False, "normalize": name == "della_linear", "epsilon": 0.25, "factor": 0.7}
        yield Case("as thinned", merge(name, two, "base", **plain), inject="words")


def _breadcrumbs(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.8, 0.3], 0.3, 0.9)
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        yield Case("scalars", merge(name, dense((0.5, 0.8, 0.4), (0.9, 0.5, 0.7)), "base"))
        gammas = dense((RISE, 0.6), (filters, 0.5), gamma=([0.0, 0.3], 0.05))
        yield Case("gradients, filters", merge(name, gammas, "base", factor=1.3))
        other = {"rescale": True, "normalize": True, "gamma": 0.05}
        yield Case("rescale, normalize", merge(name, dense((0.5, 0.8), (0.5, 0.3)), "base", **other))


def _consensus(attention: str, rest: str) -> Iterator[Case]:
    filters = mixed(attention, rest, [0.2, 0.9], 0.7, 0.4)
    yield Case("defaults", merge("sce", ALL, "base"))
    yield Case("scalar", merge("sce", ONE_TWO, "base", select_topk=0.3, int8_mask=True))
    yield Case("filters", merge("sce", ALL, "base", select_topk=filters))
    yield Case("defaults", merge("ram", ALL, "base"))
    yield Case("filters", merge("ram", ALL, "base", epsilon=mixed(attention, rest, [0.005, 0.03], 0.02, 0.0)))
    yield Case("defaults", merge("ramplus_tl", ALL, "base"))
    much = {"epsilon": 0.02, "r": [0.5, 1.5], "alpha": 3.0}
    yield Case("gradient", merge("ramplus_tl", ONE_TWO, "base", **much))
    some = {"epsilon": [0.005, 0.03], "r": filters, "alpha": [0.1, 0.8]}
    yield Case("gradients, filters", merge("ramplus_tl", ALL, "base", **some))
    yield Case("two", merge("model_stock", ONE_TWO, "base"))
    yield Case("three", merge("model_stock", {**ALL, "base": {}}, "base"))
    switch = [{"filter": attention, "value": True}, {"value": False}]
    yield Case("rows in places", merge("model_stock", ONE_TWO, "base", filter_wise=switch))


def _pairs(attention: str, rest: str) -> Iterator[Case]:
    steps = mixed(attention, rest, [0.001, 0.01], 0.03, 0.005)
    yield Case("scalar", merge("nearswap", {"one": {}}, "base", t=0.01))
    yield Case("gradient", merge("nearswap", {"base": {}, "three": {}}, "base", t=[0.001, 0.3]))
    yield Case("filters", merge("nearswap", {"two": {}}, "base", t=steps))
    yield Case("one", merge("arcee_fusion", {"one": {}}, "base"))
    yield Case("half unchanged", merge("arcee_fusion", {"base": {}, "three": {}}, "base"))


Make = "Callable[[str, str], Iterator[Case]]"
