from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from evolve.errors import CandidateError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.base import Inputs, MergeMethod, Statistic
from evolve.tensors.blocks import BLOCK
from tests.stages.merge import reference as ref
from tests.tensors.rules import drop

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYER = "model.layers.0.mlp.up_proj.weight"
METHODS = MERGE_METHODS.names()
WITH_BASE = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
)
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
# Sixteenths: differences and sums are exact, so that signs and magnitudes tie in both arithmetics or in none.
values = st.integers(-40, 40).map(lambda n: n / 16)
weights = st.one_of(st.sampled_from([0.0, 1.0, -0.5]), st.integers(-24, 24).map(lambda n: n / 16))


@st.composite
def cases(draw: st.DrawFn, most: int = 3) -> tuple[list[float], list[list[float]], list[float], list[float]]:
    size, count = draw(st.integers(1, 12)), draw(st.integers(1, most))
    vector = st.lists(values, min_size=size, max_size=size)
    models = [draw(vector) for _ in range(count)]
    densities = [draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])) for _ in range(count)]
    return draw(vector), models, [draw(weights) for _ in range(count)], densities


def load(name: str) -> type[MergeMethod]:
    return MERGE_METHODS.load(name)


def statistics_of(name: str, tensors: Sequence[torch.Tensor]) -> tuple[Statistic | None, ...]:
    """Return what a method may know of its models: other numbers for each; none where it asks for nothing."""
    kind = load(name).statistics
    found: list[Statistic | None] = []
    for index, tensor in enumerate(tensors):
        generator = torch.Generator().manual_seed(index)
        if kind == "fisher":
            values = torch.randn(tensor.shape, generator=generator).square()
            # By numpy: torch adds up in another order for another number of threads.
            mean = float(values.numpy().mean(dtype=np.float64)) if values.numel() else 1.0
            found.append(Statistic(values, mean))
        elif kind == "gram":  # only of matrices: of what is no linear layer nothing is known
            seen = torch.randn((40, tensor.shape[-1] if tensor.ndim else 1), generator=generator)
            found.append(Statistic(seen.T @ seen / 40) if tensor.ndim == 2 else None)
    return tuple(found)


def call(
    name: str,
    models: list[list[float]] | list[torch.Tensor],
    base: list[float] | torch.Tensor | None = None,
    *,
    per_model: dict[str, list[float]] | None = None,
    seeds: tuple[int, ...] | None = None,
    statistics: Sequence[Statistic | None] | None = None,
    **shared: Any,
) -> torch.Tensor:
    """Call a method with defaults for whatever is not given, on a tensor of a layer."""
    method = load(name)
    tensors = tuple(torch.as_tensor(m, dtype=torch.float32) for m in models)
    given_values = per_model or {}
    columns = {p.name: given_values.get(p.name, [p.default] * len(tensors)) for p in method.per_model}
    return method.merge(
        Inputs(
            name=LAYER,
            tensors=tensors,
            base=None if base is None else torch.as_tensor(base, dtype=torch.float32),
            per_model=tuple({key: column[i] for key, column in columns.items()} for i in range(len(tensors))),
            shared={p.name: shared.get(p.name, p.default) for p in method.shared},
            seeds=seeds or tuple(range(len(tensors))),
            statistics=tuple(statistics_of(name, tensors) if statistics is None else statistics),
        )
    )


def close(result: torch.Tensor, expected: list[float], *, scale: float = 1.0) -> bool:
    return torch.allclose(
        result.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=2e-6 * scale
    )


def cancels(weights: list[float]) -> bool:
    return abs(sum(weights)) < 1e-3


@given(cases(), st.booleans())
def test_linear(case: tuple[Any, ...], normalize: bool) -> None:
    _, models, weights, _ = case
    assume(not (normalize and cancels(weights)))
    result = call("linear", models, per_model={"weight": weights}, normalize=normalize)
    scale = 10 / abs(sum(weights)) if normalize else 10
    assert close(result, ref.linear(models, weights, normalize), scale=scale)


@given(cases(most=1), st.floats(0, 1))
def test_slerp(case: tuple[Any, ...], t: float) -> None:
    base, (model,), _, _ = case
    assume(any(base) and any(model))
    assert close(call("slerp", [model], base, t=t), ref.slerp(base, model, t), scale=10)


@given(cases(), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, -1.5]))
def test_task_arithmetic(case: tuple[Any, ...], normalize: bool, factor: float) -> None:
    base, models, weights, _ = case
    assume(not (normalize and cancels(weights)))
    result = call(
        "task_arithmetic",
        models,
        base,
        per_model={"weight": weights},
        normalize=normalize,
        **{"lambda": factor},
    )
    scale = 10 / abs(sum(weights)) if normalize else 10
    assert close(result, ref.task_arithmetic(base, models, weights, factor, normalize), scale=scale)


@given(cases(), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5]))
def test_ties(case: tuple[Any, ...], normalize: bool, rescale: bool, factor: float) -> None:
    base, models, weights, densities = case
    if rescale:  # rescaled terms are rounded: signs may tie in one arithmetic only
        models, weights, densities = models[:1], weights[:1], densities[:1]
    result = call(
        "ties",
        models,
        base,
        per_model={"weight": weights, "density": densities},
        normalize=normalize,
        rescale=rescale,
        **{"lambda": factor},
    )
    assert close(result, ref.ties(base, models, weights, densities, factor, normalize, rescale), scale=30)


@pytest.mark.parametrize(("name", "combine"), [("dare_linear", ref.add), ("dare_ties", ref.elect)])
@given(case=cases(), normalize=st.booleans(), rescale=st.booleans(), seed=st.integers(0, 2**63))
def test_dare(
    name: str, combine: Any, case: tuple[Any, ...], normalize: bool, rescale: bool, seed: int
) -> None:
    base, models, weights, densities = case
    assume(not (name == "dare_linear" and normalize and cancels(weights)))
    densities = [0.5 if p == 0.75 else p for p in densities]  # 1/p exact
    seeds = tuple(seed + i for i in range(len(models)))
    masks = [
        (drop(torch.ones(len(base)), p, s, rescale=False) > 0).tolist()
        for p, s in zip(densities, seeds, strict=True)
    ]
    per_model = {"weight": weights, "density": densities}
    result = call(name, models, base, per_model=per_model, seeds=seeds, normalize=normalize, rescale=rescale)
    expected = ref.dare(
        base, models, weights, densities, masks, combine, normalize=normalize, rescale=rescale
    )
    scale = 40 / abs(sum(weights)) if name == "dare_linear" and normalize else 40
    assert close(result, expected, scale=scale)


def test_passthrough() -> None:
    assert call("passthrough", [[1.0, -2.0]]).tolist() == [1.0, -2.0]
    assert call("passthrough", [[1.0, -2.0]], per_model={"scale": [0.5]}).tolist() == [0.5, -1.0]


# Properties that hold for every method.


def some_inputs(
    name: str, shape: tuple[int, ...], *, zero: bool = False
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    method = load(name)
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    if zero:
        tensors = [tensors[0].clone() for _ in range(3)]
    count = 1 if method.models[1] == 1 else 2
    per_model = {p.name: [0.75] * count for p in method.per_model}
    shared = {p.name: 0.25 for p in method.shared if p.default is None}
    base = None if method.base == "none" else tensors[2]
    return {"name": name, "models": tensors[:count], "base": base, "per_model": per_model, **shared}, tensors


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 0), (1, 1), (7,), (3, 4)])
def test_odd_shapes_and_untouched_inputs(name: str, shape: tuple[int, ...]) -> None:
    arguments, tensors = some_inputs(name, shape)
    before = [t.clone() for t in tensors]
    result = call(**arguments)
    assert result.shape == shape
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert result.numel() == 0 or result.data_ptr() not in {t.data_ptr() for t in tensors}


@pytest.mark.parametrize("name", METHODS)
def test_transposed_inputs_give_the_transposed_result_of_elementwise_methods(name: str) -> None:
    if name in RANDOM or name == "arcee_fusion":
        pytest.skip("masks go by place, or elements by row")
    arguments, _ = some_inputs(name, (6, 4))
    turned = dict(arguments)
    turned["models"] = [m.t() for m in arguments["models"]]
    turned["base"] = None if arguments["base"] is None else arguments["base"].t()
    known = [one for one in statistics_of(name, arguments["models"]) if one is not None]
    gram = load(name).statistics == "gram"
    # The inputs of a turned layer belong to its other axis, and are the same.
    turned["statistics"] = [
        replace(one, input_axis=0) if gram else replace(one, values=one.values.t()) for one in known
    ]
    assert torch.allclose(call(**turned), call(**arguments).t(), rtol=1e-6, atol=2e-7)


def test_slerp_ends_are_the_models() -> None:
    _, (one, _, base) = some_inputs("slerp", (50,))
    assert torch.equal(call("slerp", [one], base, t=0.0), base)
    assert torch.allclose(call("slerp", [one], base, t=1.0), one, rtol=1e-6)


@pytest.mark.parametrize("name", WITH_BASE)
def test_lambda_scales_the_task_vector(name: str) -> None:
    _, (one, two, base) = some_inputs(name, (200,))
    per_model = {"weight": [0.7, 0.4], "density": [0.5, 0.8]}
    whole, half = (
        call(name, [one, two], base, per_model=per_model, **{"lambda": factor}).double() - base.double()
        for factor in (1.0, 0.5)
    )
    assert torch.allclose(half, whole / 2, atol=1e-6)


def test_task_arithmetic_with_normalized_weights_is_linear() -> None:
    _, (one, two, base) = some_inputs("linear", (200,))
    per_model = {"weight": [0.7, -0.2]}
    result = call("task_arithmetic", [one, two], base, per_model=per_model, normalize=True)
    assert torch.allclose(result, call("linear", [one, two], per_model=per_model), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(4 * BLOCK + 7,), (130, 170)])
def test_same_bits_with_any_number_of_threads(name: str, shape: tuple[int, ...]) -> None:
    arguments, _ = some_inputs(name, shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call(**arguments))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(64,), (8, 8)])
def test_nan_reaches_the_result(name: str, shape: tuple[int, ...]) -> None:
    arguments, _ = some_inputs(name, shape)
    arguments["models"][0].view(-1)[5] = float("nan")
    if name in RANDOM:
        arguments["per_model"]["density"] = [0.0001, 0.0001]
    assert torch.isnan(call(**arguments)).any()


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "dare_linear"])
@pytest.mark.parametrize("pair", [(0.5, -0.5), (0.3, -0.3 + 1e-9)])
def test_weights_that_cancel_out_cannot_be_normalized(name: str, pair: tuple[float, float]) -> None:
    _, tensors = some_inputs(name, (8,))
    base = None if name == "linear" else tensors[2]
    with pytest.raises(CandidateError, match="sum to zero") as caught:
        call(name, tensors[:2], base, per_model={"weight": list(pair)}, normalize=True)
    assert caught.value.kind == "invalid_recipe"


def test_all_weights_zero() -> None:
    _, (one, two, base) = some_inputs("linear", (8,))
    with pytest.raises(CandidateError, match="sum to zero"):
        call("linear", [one, two], per_model={"weight": [0.0, 0.0]})
    result = call("task_arithmetic", [one, two], base, per_model={"weight": [0.0, 0.0]}, normalize=True)
    assert torch.equal(result, base)


# Where mergekit is wrong or leaves a choice (docs/merge-methods.md names each).


def test_ties_with_a_negative_weight_stays_within_the_task_vectors() -> None:
    """Two deltas of size 1 that point the same way after weighting: their mean has size 1, not 99."""
    result = call("ties", [[1.0], [-1.0]], [0.0], per_model={"weight": [0.50, -0.49]})
    assert result.item() == pytest.approx(1.0)


def test_dare_divides_by_the_density_on_small_tensors() -> None:
    """The mean over masks is the tensor; matching the L1 norm makes it up to 1.6 times as large."""
    delta = [2.0**-i for i in range(16)]
    draws = [
        call("dare_linear", [delta], [0.0] * 16, per_model={"weight": [1.0], "density": [0.1]}, seeds=(seed,))
        for seed in range(3000)
    ]
    ratio = torch.stack(draws).double().mean(0) / torch.tensor(delta, dtype=torch.float64)
    assert ((ratio - 1).abs() < 4.5 * (0.9 / 0.1 / 3000) ** 0.5).all()


def test_slerp_with_a_zero_tensor_goes_straight() -> None:
    """A zero vector has no direction: halfway is half the other one, not .707 of it."""
    assert call("slerp", [[2.0, -4.0]], [0.0, 0.0], t=0.5).tolist() == [1.0, -2.0]


def test_ties_trims_float32_differences_of_bfloat16_weights() -> None:
    """In bfloat16 these two deltas would tie."""
    base = torch.tensor([1.0, 1.0])
    model = torch.tensor([1.0 + 2**-7, 1.0 + 2**-7 + 2**-14])
    per_model = {"weight": [1.0], "density": [0.5]}
    assert call("ties", [model], base, per_model=per_model).tolist() == [1.0, model[1].item()]


# What each registered method declares.


@pytest.mark.parametrize("name", METHODS)
def test_declarations(name: str) -> None:
    method = load(name)
    assert method.name == name
    assert method.paper
    assert method.base in {"required", "optional", "none"}
    params = (*method.per_model, *method.shared)
    names = [p.name for p in params]
    assert len(set(names)) == len(names)
    assert not set(names) & set(method.ignored)
    for param in params:
        assert param.doc
        if param.kind == "bool":
            assert isinstance(param.default, bool)
        if param.suggest is not None:
            low, high = param.suggest
            assert low < high
            assert param.low is None or low >= param.low
            assert param.high is None or high <= param.high


def test_listing_the_methods_does_not_import_torch() -> None:
    code = (
        "import sys; from evolve.registry import MERGE_METHODS as m;"
        "[m.load(n).per_model for n in m.names()]; import evolve.stages.merge.block;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
