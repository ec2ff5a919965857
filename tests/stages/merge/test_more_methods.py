"""Each method against its float64 re-derivation, on many shapes and on tensors full of ties."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.stages.merge import reference as ref
from tests.stages.merge import reference_more as more
from tests.stages.merge.test_methods import call
from tests.tensors.test_rules import draw_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SHAPES = [(), (1,), (0,), (7,), (300,), (5, 1), (1, 6), (4, 6), (40, 33), (3, 4, 5), (5, 0), (0, 5)]
SEEDS = (11, 12, 13)


def tensors(
    shape: tuple[int, ...], count: int = 4, *, seed: int = 3, tie: bool = False
) -> list[torch.Tensor]:
    """Return random tensors; with ``tie`` of eighths, so that many magnitudes and sums are equal."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for _ in range(count)]
    return [torch.round(tensor * 8) / 8 for tensor in made] if tie else made


def exact(tensor: torch.Tensor) -> Array:
    found: Array = tensor.double().numpy()
    return found


def check(result: torch.Tensor, expected: Array, scale: float = 1.0) -> None:
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result.double(), torch.from_numpy(np.asarray(expected)), rtol=1e-6, atol=1e-6 * scale
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_nuslerp(shape: tuple[int, ...]) -> None:
    one, two, base, _ = tensors(shape)
    weightings = [(0.7, 0.2), (1.0, 0.0), (-0.3, 1.1)]
    for along, origin, weights in product(["all", "rows", "columns"], [None, base], weightings):
        result = call(
            "nuslerp",
            [one, two],
            origin,
            per_model={"weight": list(weights)},
            nuslerp_flatten=along == "all",
            nuslerp_row_wise=along == "rows",
        )
        start = None if origin is None else exact(origin)
        check(result, more.nuslerp([exact(one), exact(two)], weights, start, along), scale=10)


@pytest.mark.parametrize("shape", SHAPES)
def test_multislerp(shape: tuple[int, ...]) -> None:
    *models, base = tensors(shape)
    weightings = [(0.7, 0.2, 0.4), (1.0, 0.0, 0.0), (-0.3, 1.1, 0.5), (2.0, 2.0, 2.0)]
    for origin, normalize, weights in product([None, base], [False, True], weightings):
        per_model = {"weight": list(weights)}
        result = call("multislerp", models, origin, per_model=per_model, normalize_weights=normalize)
        start = None if origin is None else exact(origin)
        check(result, more.multislerp([exact(m) for m in models], weights, start, normalize), scale=10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [1.0, 0.01, 1e-4])
def test_karcher(shape: tuple[int, ...], spread: float) -> None:
    """Spread: from unrelated models to fine-tunes of one."""
    common, *others = tensors(shape, 5)
    made = [common + spread * model for model in others]
    stops: list[dict[str, Any]] = [{}, {"max_iter": 1}, {"tol": 0.0, "max_iter": 30}]
    for count, stop in product([1, 2, 3, 4], stops):
        result = call("karcher", made[:count], **stop)
        check(result, more.karcher([exact(m) for m in made[:count]], **stop))


DELLA = [((0.5, 0.25), 0.25), ((0.9, 0.1), 0.15), ((1.0, 0.0), 0.3), ((0.6, 0.7), 0.0), ((0.5, 0.3), 1.0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "combine"), [("della", ref.elect), ("della_linear", ref.add)])
@pytest.mark.parametrize("tie", [False, True])
def test_della(shape: tuple[int, ...], name: str, combine: Callable[..., list[float]], tie: bool) -> None:
    for (densities, epsilon), rescale in product(DELLA, [False, True]):
        one, two, base, _ = tensors(shape, tie=tie)
        if tie and rescale:
            one = base  # quotients are rounded: the signs of sums may tie in one arithmetic only
        weights = [0.5, 0.75]
        per_model = {"weight": weights, "density": list(densities), "epsilon": [epsilon, epsilon]}
        result = call(name, [one, two], base, per_model=per_model, seeds=SEEDS[:2], rescale=rescale)

        def prune(i: int, delta: Array) -> Array:
            # Ranks are those of float32 differences.
            rounded = delta.astype(np.float32).astype(np.float64)
            words = draw_words(SEEDS[i], delta.size)
            return more.magprune(rounded, densities[i], epsilon, words, rescale)  # noqa: B023

        models = [exact(one), exact(two)]
        expected = more.sparse(exact(base), models, weights, prune, combine, normalize=name == "della")
        check(result, expected, scale=1e3 if epsilon == 1.0 else 30)


CRUMBS = [((0.5, 0.9), 0.01), ((0.3, 0.95), 0.2), ((1.0, 0.0), 0.3), ((0.9, 0.5), 0.0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "combine"), [("breadcrumbs", ref.add), ("breadcrumbs_ties", ref.elect)])
@pytest.mark.parametrize("tie", [False, True])
def test_breadcrumbs(
    shape: tuple[int, ...], name: str, combine: Callable[..., list[float]], tie: bool
) -> None:
    for (densities, gamma), rescale in product(CRUMBS, [False, True]):
        one, two, base, _ = tensors(shape, tie=tie)
        if tie and rescale:
            one = base
        weights = [0.5, 0.75]
        per_model = {"weight": weights, "density": list(densities), "gamma": [gamma, gamma]}
        result = call(name, [one, two], base, per_model=per_model, rescale=rescale, **{"lambda": 0.5})

        def prune(i: int, delta: Array) -> Array:
            rounded = delta.astype(np.float32).astype(np.float64)
            return more.breadcrumb(rounded, densities[i], gamma, rescale)  # noqa: B023

        models = [exact(one), exact(two)]
        check(result, more.sparse(exact(base), models, weights, prune, combine, factor=0.5), scale=10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tie", [False, True])
def test_sce(shape: tuple[int, ...], tie: bool) -> None:
    base, *models = tensors(shape, tie=tie)
    for select, count in product([0.0, 0.001, 0.3, 0.9, 1.0], [1, 2, 3]):
        result = call("sce", models[:count], base, select_topk=select)
        check(result, more.sce(exact(base), [exact(m) for m in models[:count]], select), scale=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_ram(shape: tuple[int, ...]) -> None:
    base, *models = tensors(shape)
    for epsilon, count in product([0.0, 1e-5, 0.4, 1.0], [1, 2, 3]):
        some, arrays = models[:count], [exact(m) for m in models[:count]]
        check(call("ram", some, base, epsilon=epsilon), more.ram(exact(base), arrays, epsilon), scale=3)
        for r, alpha in ((0.1, 0.2), (1.0, 5.0), (0.5, 0.0)):
            result = call("ramplus_tl", some, base, epsilon=epsilon, r=r, alpha=alpha)
            check(result, more.ram(exact(base), arrays, epsilon, r, alpha), scale=3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("common", [0.0, 0.5, 3.0])
def test_model_stock(shape: tuple[int, ...], common: float) -> None:
    """With a common part the angles are below 90 degrees; without, some are above."""
    base, *others = tensors(shape, seed=5)
    alike = tensors(shape, 1, seed=9)[0]
    for filter_wise, count in product([False, True], [2, 3]):
        models = [base + common * alike + 0.1 * model for model in others[:count]]
        result = call("model_stock", models, base, filter_wise=filter_wise)
        check(result, more.model_stock(exact(base), [exact(m) for m in models], filter_wise), scale=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_nearswap(shape: tuple[int, ...]) -> None:
    base, model, _, _ = tensors(shape)
    for t in (0.0, 1e-8, 0.3, 1.0, 100.0):
        check(call("nearswap", [model], base, t=t), more.nearswap(exact(base), exact(model), t))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-5])
def test_arcee_fusion(shape: tuple[int, ...], size: float) -> None:
    base, change, _, _ = tensors(shape)
    model = base + size * change
    check(call("arcee_fusion", [model], base), more.arcee_fusion(exact(base), exact(model)))


sixteenths = st.integers(-24, 24).map(lambda n: n / 16)


@st.composite
def tied(draw: st.DrawFn) -> list[torch.Tensor]:
    size, count = draw(st.integers(1, 9)), draw(st.integers(2, 4))
    vector = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | sixteenths, min_size=size, max_size=size)
    return [torch.tensor(draw(vector)) for _ in range(count)]


@given(tied(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=60)
def test_sce_with_ties(made: list[torch.Tensor], select: float) -> None:
    base, *models = made
    result = call("sce", models, base, select_topk=select)
    check(result, more.sce(exact(base), [exact(m) for m in models], select), scale=3)


@given(tied(), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=60)
def test_ram_with_ties(made: list[torch.Tensor], epsilon: float) -> None:
    base, *models = made
    result = call("ramplus_tl", models, base, epsilon=epsilon, r=0.5, alpha=0.7)
    check(result, more.ram(exact(base), [exact(m) for m in models], epsilon, 0.5, 0.7), scale=3)


@given(tied(), st.booleans())
@settings(max_examples=60)
def test_model_stock_with_ties(made: list[torch.Tensor], filter_wise: bool) -> None:
    base, *models = made
    assume(len(models) > 1)
    result = call("model_stock", models, base, filter_wise=filter_wise)
    check(result, more.model_stock(exact(base), [exact(m) for m in models], filter_wise), scale=3)


@given(tied())
@settings(max_examples=60)
def test_means_of_directions_with_ties(made: list[torch.Tensor]) -> None:
    arrays = [exact(m) for m in made]
    check(call("karcher", made), more.karcher(arrays), scale=3)
    weights = [1.0] * len(made)
    result = call("multislerp", made, per_model={"weight": weights})
    check(result, more.multislerp(arrays, weights), scale=3)
