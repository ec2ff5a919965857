"""Laws of the methods for any shape, seed and weight: equal models, a single one, the order, huge weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.errors import CandidateError
from evolve.stages.merge import MergeStage
from tests.stages.merge.memory import NAMES, block, memory_model
from tests.stages.merge.test_methods import METHODS, WITH_BASE, call, load, statistics_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.stages.merge.base import Param

ONE_EACH = ("linear", "nuslerp", "multislerp", "geometric_median", "fisher", "regmean")
"""Methods with a weight for each model, of which a single one gives that model."""
# Methods without a place for a first model.
ALIKE = ("karcher", "sce", "ram", "ramplus_tl", "model_stock", "uniform_soup", "tsv", *ONE_EACH, *WITH_BASE)
shapes = st.sampled_from([(), (1,), (9,), (4, 1), (1, 5), (6, 10), (2, 3, 4)])
seeds = st.integers(0, 2**20)
shares = st.integers(1, 32).map(lambda n: n / 16)


def noise(shape: tuple[int, ...], seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def drawn(data: st.DataObject, params: Sequence[Param], count: int) -> list[dict[str, Any]]:
    """Return values within the ranges, ``count`` for each parameter."""

    def one(param: Param) -> Any:
        if param.kind == "bool":
            return data.draw(st.booleans())
        if param.kind != "float":
            return param.default
        low, high = (0.0625 if param.low is None else param.low), (2.0 if param.high is None else param.high)
        return data.draw(st.floats(low, max(low, high)))

    return [{param.name: one(param) for param in params} for _ in range(count)]


def by_name(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data(), shape=shapes, seed=seeds, count=st.integers(1, 4))
@settings(max_examples=15)
def test_merging_a_model_with_itself_gives_it_back(
    name: str, data: st.DataObject, shape: tuple[int, ...], seed: int, count: int
) -> None:
    """With a base: all task vectors are zero, whatever the parameters."""
    method = load(name)
    count = min(max(count, method.models[0]), method.models[1] or 4)
    (model,) = noise(shape, seed, 1)
    per_model = by_name(drawn(data, method.per_model, count))
    (shared,) = drawn(data, method.shared, 1)
    if name == "passthrough":
        per_model = {"scale": [1.0]}
    if "weight" in per_model:
        per_model["weight"] = [data.draw(shares) for _ in range(count)]
    if name == "linear":
        shared["normalize"] = True
    if name == "multislerp":
        shared.pop("normalize_weights")
    base = None if method.base == "none" else model.clone()
    models = [model.clone() for _ in range(count)]
    torch.testing.assert_close(
        call(name, models, base, per_model=per_model, **shared), model, rtol=6e-7, atol=0
    )


@pytest.mark.parametrize("name", [*ONE_EACH, *WITH_BASE])
@given(data=st.data(), shape=shapes, seed=seeds, count=st.integers(2, 4))
@settings(max_examples=15)
def test_a_weight_of_one_beside_zeros_selects(
    name: str, data: st.DataObject, shape: tuple[int, ...], seed: int, count: int
) -> None:
    count = min(count, load(name).models[1] or count)
    base, *models = noise(shape, seed, count + 1)
    chosen = data.draw(st.integers(0, count - 1))
    weights = [float(place == chosen) for place in range(count)]
    given_base = base if name in WITH_BASE else None
    result = call(name, models, given_base, per_model={"weight": weights})
    torch.testing.assert_close(result, models[chosen], rtol=1e-6, atol=1e-6)
    if name in WITH_BASE:
        assert torch.equal(call(name, models, base, per_model={"weight": [0.0] * count}), base)


@pytest.mark.parametrize("name", ALIKE)
@given(data=st.data(), shape=shapes, seed=seeds)
@settings(max_examples=15)
def test_the_order_of_the_models_does_not_matter(
    name: str, data: st.DataObject, shape: tuple[int, ...], seed: int
) -> None:
    method = load(name)
    count = method.models[1] or 3
    *models, base = noise(shape, seed, count + 1)
    order = data.draw(st.permutations(range(count)))
    columns = {param.name: [param.default] * count for param in method.per_model}
    for column in ("weight", "density"):
        if column in columns:
            values = shares if column == "weight" else st.sampled_from([0.25, 0.5, 0.75, 1.0])
            columns[column] = [data.draw(values) for _ in range(count)]
    known = statistics_of(name, models)
    start = None if method.base in ("none", "optional") else base
    first = call(name, models, start, per_model=columns, seeds=tuple(range(count)), statistics=known)
    turned = call(
        name,
        [models[place] for place in order],
        start,
        per_model={key: [column[place] for place in order] for key, column in columns.items()},
        seeds=tuple(order),
        statistics=[known[place] for place in order] if known else (),
    )
    torch.testing.assert_close(turned, first, rtol=2e-6, atol=4e-6)


HUGE = (1e30, -1e30, 1e-30, -1e-30, 0.0, 1.0, 3e38, 1e300)


def extreme(data: st.DataObject, param: Param) -> float | bool:
    if param.kind == "bool":
        return data.draw(st.booleans())
    if param.kind != "float":
        return int(param.default)
    low, high = (
        (-math.inf if param.low is None else param.low),
        (math.inf if param.high is None else param.high),
    )
    return data.draw(st.sampled_from([value for value in HUGE if low <= value <= high]))


@pytest.mark.parametrize("name", [name for name in METHODS if load(name).statistics is None])
@given(data=st.data())
@settings(max_examples=25)
def test_extreme_values_give_finite_weights_or_an_error(name: str, data: st.DataObject) -> None:
    """Through the stage, which owes every candidate one of the two; a silent NaN is neither."""
    method = load(name)
    numbers = st.lists(st.sampled_from([0.0, 1.0, -2.5, 1e-30, 1e30, -3e38]), min_size=6, max_size=6)
    count = data.draw(st.integers(method.models[0], method.models[1] or 3))
    names = ["one", "two", "three"][:count]
    models = {
        model: memory_model({NAMES[1]: torch.tensor(data.draw(numbers)).reshape(2, 3)})
        for model in ("base", *names)
    }
    entries = {model: {p.name: extreme(data, p) for p in method.per_model} for model in names}
    keys: dict[str, Any] = {"parameters": {p.name: extreme(data, p) for p in method.shared}}
    if method.base == "required" or (method.base == "optional" and data.draw(st.booleans())):
        keys["base_model"] = "base"
    recipe = block(name, entries, **keys)
    assert recipe.problems() == []
    try:
        result = MergeStage.run(recipe, models, seed=0).tensor(NAMES[1])
    except CandidateError as error:
        assert error.kind == "non_finite" or "sum to zero" in str(error)
        return
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("name", ["fisher", "regmean"])
@given(data=st.data(), seed=seeds)
@settings(max_examples=25)
def test_extreme_weights_of_what_was_gathered_give_finite_weights(
    name: str, data: st.DataObject, seed: int
) -> None:
    """Both are means, so there is nothing that could be too large."""
    models = noise((4, 5), seed, 3)
    weights = [data.draw(st.sampled_from([value for value in HUGE if value >= 0])) for _ in models]
    try:
        result = call(name, models, per_model={"weight": weights})
    except CandidateError as error:
        assert "sum to zero" in str(error)
        return
    assert torch.isfinite(result).all()


@pytest.mark.parametrize(
    "name",
    ["linear", "task_arithmetic", "uniform_soup", "wise_ft", "passthrough", "nearswap", "ram", "fisher"],
)
@given(seed=seeds, cut=st.integers(0, 3000))
@settings(max_examples=20)
def test_a_part_of_a_tensor_alone_gives_the_same_bits(name: str, seed: int, cut: int) -> None:
    """Of methods that see one entry at a time: blocks that begin elsewhere change nothing."""
    method = load(name)
    count = method.models[1] or 3
    *models, base = noise((3000,), seed, count + 1)
    given_base = None if method.base == "none" else base
    known = statistics_of(name, models)
    options: dict[str, Any] = {
        "per_model": {param.name: [0.7] * count for param in method.per_model},
        **{param.name: 0.25 for param in method.shared if param.default is None},
    }
    whole = call(name, models, given_base, statistics=known, **options)
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        some = [type(one)(one.values[part], one.mean) for one in known if one is not None]
        start = None if given_base is None else given_base[part]
        parts.append(call(name, [model[part] for model in models], start, statistics=some, **options))
    assert torch.equal(torch.cat(parts), whole)
