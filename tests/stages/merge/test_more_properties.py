"""What must hold of the methods whatever the numbers."""

from __future__ import annotations

import hashlib
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.errors import CandidateError
from evolve.stages.memo import Memo
from evolve.stages.merge import MergeStage
from evolve.tensors import arcee, blocks, interpolate, magnitude, median, ram, rows, sce, selection
from evolve.tensors.blocks import BLOCK
from tests.stages.merge import reference_more as more
from tests.stages.merge.memory import NAMES, block, random_model
from tests.stages.merge.test_methods import METHODS, RANDOM, call, load, some_inputs
from tests.stages.merge.test_more_methods import exact, tensors


def arguments(name: str, models: list[torch.Tensor], base: torch.Tensor) -> dict[str, Any]:
    """Return arguments for :func:`call` with the number of models that the method takes."""
    method = load(name)
    some = models[: method.models[1] or len(models)]
    return {
        "name": name,
        "models": some,
        "base": None if method.base == "none" else base,
        "per_model": {
            p.name: [0.5 if p.default is None else p.default] * len(some) for p in method.per_model
        },
        **{p.name: 0.25 for p in method.shared if p.default is None},
    }


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
@pytest.mark.parametrize("with_base", [False, True])
def test_weights_zero_and_one_select(name: str, with_base: bool) -> None:
    one, two, base, _ = tensors((60,))
    for weights, expected in (([1.0, 0.0], one), ([0.0, 0.3], two)):
        result = call(name, [one, two], base if with_base else None, per_model={"weight": weights})
        torch.testing.assert_close(result, expected, rtol=3e-7, atol=3e-7)


def test_density_one_and_zero_select() -> None:
    one, two, base, _ = tensors((60,))
    for name in ("della", "della_linear", "breadcrumbs", "breadcrumbs_ties"):
        for density, expected in ((1.0, one), (0.0, base)):
            per_model = {"weight": [1.0, 0.0], "density": [density, density]}
            result = call(name, [one, two], base, per_model=per_model)
            torch.testing.assert_close(result, expected, rtol=3e-7, atol=3e-7)


def test_nearswap_ends_are_the_models() -> None:
    base, model, _, _ = tensors((60,))
    assert torch.equal(call("nearswap", [model], base, t=0.0), base)
    assert torch.equal(call("nearswap", [model], base, t=1e9), model)


@pytest.mark.parametrize("name", ["karcher", "multislerp", "model_stock", "sce", "ram", "nuslerp"])
def test_merging_equal_fine_tunes_gives_them_back(name: str) -> None:
    base, model, _, _ = tensors((6, 10))
    given = arguments(name, [model, model.clone(), model.clone()], base)
    torch.testing.assert_close(call(**given), model, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("name", ["sce", "ram", "multislerp", "karcher"])
def test_a_single_model_is_the_result(name: str) -> None:
    base, model, _, _ = tensors((6, 10))
    torch.testing.assert_close(call(**arguments(name, [model], base)), model, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "arcee_fusion"])
@pytest.mark.parametrize("exponent", [-60, -20, 20, 60])
def test_scaling_the_models_scales_the_result(name: str, exponent: int) -> None:
    """Exactly, for a power of two: so there is no size below which a tensor counts as zero."""
    *models, base = tensors((20, 10))
    factor = 2.0**exponent
    plain = arguments(name, models, base)
    scaled = arguments(name, [model * factor for model in models], base * factor)
    if name.startswith("ram"):
        plain["epsilon"], scaled["epsilon"] = 0.5, 0.5 * factor
    if name == "nearswap":
        scaled["t"] *= factor
    if name == "karcher":
        plain["tol"] = scaled["tol"] = 1e-5
    assert torch.equal(call(**scaled), call(**plain) * factor)


@pytest.mark.parametrize("name", METHODS)
def test_same_result_for_any_size_of_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single operations give the same bits; sums over a tensor are float64 and added in another order."""
    *models, base = tensors((97, BLOCK // 64))
    given = arguments(name, models, base)
    if "density" in given["per_model"]:
        given["per_model"]["density"] = [0.4] * len(given["models"])
    whole = call(**given)
    for module in (arcee, blocks, interpolate, magnitude, median, ram, rows, sce):
        monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(selection, "_PART", 1000)
    # The compiled pass goes by blocks, whose size is a part of what a seed means; the other one has none.
    monkeypatch.setattr(sys.modules["evolve.tensors.fused.merge"], "_rule", lambda _: None)
    small = call(**given)
    if name in ("nuslerp", "multislerp", "karcher", "model_stock", "slerp", "sce"):
        torch.testing.assert_close(small, whole, rtol=1.3e-7, atol=0)
    else:
        assert torch.equal(small, whole)


sizes = st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e-30, -1e-8, 1e-3, 7.0, 1e6, -1e15, 1e30])
flags = st.booleans()


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
@settings(max_examples=60)
def test_finite_input_gives_no_nan(name: str, data: st.DataObject) -> None:
    method = load(name)
    shape = data.draw(st.sampled_from([(1,), (4,), (2, 3), (3, 1)]))
    count = data.draw(st.integers(method.models[0], method.models[1] or 3))
    numbers = st.lists(sizes, min_size=math.prod(shape), max_size=math.prod(shape))

    def tensor() -> torch.Tensor:
        return torch.tensor(data.draw(numbers)).reshape(shape)

    def number(param: Any) -> float:
        if param.kind != "float":
            return data.draw(flags) if param.kind == "bool" else data.draw(st.integers(1, 5))
        low = param.low if param.low is not None else -2.0
        high = param.high if param.high is not None else max(low, 2.0)
        return data.draw(st.sampled_from([low, high, (low + high) / 2, low + (high - low) * 1e-6]))

    base = tensor()
    models = [data.draw(st.sampled_from([base.clone(), tensor()])) for _ in range(count)]
    try:
        result = call(
            name,
            models,
            None if method.base == "none" or (method.base == "optional" and data.draw(flags)) else base,
            per_model={p.name: [number(p) for _ in models] for p in method.per_model},
            **{p.name: number(p) for p in method.shared},
        )
    except CandidateError as error:
        assert "sum to zero" in str(error)
        return
    assert result.shape == shape
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
@pytest.mark.parametrize("pair", [(0.5, -0.5), (0.0, 0.0)])
def test_weights_that_cancel_out(name: str, pair: tuple[float, float]) -> None:
    one, two, _, _ = tensors((8,))
    with pytest.raises(CandidateError, match="sum to zero") as caught:
        call(name, [one, two], per_model={"weight": list(pair)})
    assert caught.value.kind == "invalid_recipe"
    assert ("normalize_weights: false" in str(caught.value)) == (name == "multislerp")


def test_every_random_method_is_listed() -> None:
    """RANDOM is what the tests of the other methods skip: exactly those whose result depends on the seed."""
    for name in METHODS:
        given, _ = some_inputs(name, (40, 5))
        if "density" in given["per_model"]:
            given["per_model"]["density"] = [0.5] * len(given["models"])
        count = len(given["models"])
        first, second = (call(**given, seeds=tuple(range(s, s + count))) for s in (1, 101))
        assert torch.equal(first, second) == (name not in RANDOM), name


# The random method.


def kept(
    delta: torch.Tensor, density: float, epsilon: float, seed: int, *, rescale: bool = True
) -> torch.Tensor:
    """Return what DELLA makes of one task vector."""
    per_model = {"weight": [1.0], "density": [density], "epsilon": [epsilon]}
    return call(
        "della_linear", [delta], torch.zeros_like(delta), per_model=per_model, seeds=(seed,), rescale=rescale
    )


def test_della_has_pinned_bits() -> None:
    """Changed masks would silently change every DELLA recipe that was ever exported."""
    delta = torch.arange(1.0, 3 * BLOCK + 7).reshape(-1, 2 * 3).remainder(17) + 1
    mask = (kept(delta, 0.5, 0.25, 42, rescale=False) != 0).numpy().astype(np.uint8)
    assert hashlib.sha256(mask.tobytes()).hexdigest()[:16] == "58b3b12e83e0c5fa"


@pytest.mark.parametrize("pair", [("della_linear", "dare_linear"), ("della", "dare_ties")])
def test_della_without_epsilon_is_dare(pair: tuple[str, str]) -> None:
    """The same random numbers decide: a seed means the same mask in both."""
    *models, base = tensors((30, 40))
    per_model = {"weight": [0.5, 0.3, 0.9], "density": [0.25, 0.5, 0.7], "epsilon": [0.0] * 3}
    given = {"per_model": per_model, "seeds": (5, 6, 7), "normalize": False}
    torch.testing.assert_close(
        call(pair[0], models, base, **given), call(pair[1], models, base, **given), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.25), (0.3, 0.15), (0.9, 0.15), (0.1, 0.4)])
def test_della_keeps_by_rank_and_is_unbiased(density: float, epsilon: float) -> None:
    """Each rank stays as often as its probability says, and the mean over masks is the tensor."""
    draws = 4000
    delta = torch.tensor([3.0, -1.0, 0.5, 2.0, -0.25]).repeat(draws, 1)
    result = kept(delta, density, epsilon, 3).double()
    chances = torch.tensor(more.stay_chances(exact(delta[0]), density, epsilon), dtype=torch.float64)
    spread = 4.5 * (chances * (1 - chances) / draws).sqrt() + 1e-12
    assert (((result != 0).double().mean(0) - chances).abs() <= spread).all()
    possible = chances > 0
    error = (result.mean(0) - delta[0]).abs() / delta[0].abs()
    assert (error[possible] <= spread[possible] / chances[possible] + 1e-6).all()


def test_della_of_very_long_rows() -> None:
    """Their ranks do not fit into 16 bits, and the pass is not the compiled one."""
    delta = torch.randn(70_000, generator=torch.Generator().manual_seed(1))
    result = kept(delta, 0.5, 0.4, 9, rescale=False) != 0
    by_rank = result[delta.abs().argsort()].double()
    assert by_rank[:7000].mean().item() == pytest.approx(0.14, abs=0.02)
    assert by_rank[-7000:].mean().item() == pytest.approx(0.86, abs=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_gives_the_same_bits_on_a_gpu(name: str) -> None:
    *models, base = tensors((300, 70), tie=True)
    given = arguments(name, models, base)
    given["per_model"]["density"] = [0.4, 0.5, 0.9]
    turned = {**given, "models": [m.cuda() for m in models], "base": base.cuda()}
    on_gpu = call(**turned)
    assert torch.equal(on_gpu.cpu(), call(**given))


def test_della_rows_are_independent() -> None:
    """A row's mask depends on its own ranks and places, not on the other rows."""
    delta = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    changed = delta.clone()
    changed[20:] *= 100
    assert torch.equal(kept(delta, 0.5, 0.4, 9)[:20], kept(changed, 0.5, 0.4, 9)[:20])


@pytest.mark.parametrize("name", [name for name in METHODS if load(name).statistics is None])
def test_what_is_kept_between_candidates_changes_nothing(name: str) -> None:
    """Other models, another order, another base: what one candidate computed is not taken for another's."""
    method = load(name)
    models = {key: random_model(seed, dtype="bfloat16") for seed, key in enumerate("abcde")}
    memo = Memo()
    count = min(3, method.models[1] or 3)
    for *some, base in ("abce", "abde", "cbae", "abcd", "eabc", "abce"):
        given = {p.name: 0.4 for p in (*method.per_model, *method.shared) if p.default is None}
        entries = dict.fromkeys(some[:count], given if method.per_model else {})
        keys: dict[str, Any] = {} if method.per_model or not given else {"parameters": given}
        if method.base == "required":
            keys["base_model"] = base
        recipe = block(name, entries, **keys)
        assert recipe.problems() == []
        fresh, again = (
            MergeStage.run(recipe, models, seed=1, memo=kept).tensor(NAMES[1]) for kept in (None, memo)
        )
        assert torch.equal(fresh, again)
