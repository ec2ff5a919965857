"""Where mergekit 0.1.5 is wrong or leaves a choice: docs/merge-methods.md names each of these tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from evolve.stages.merge import MergeStage
from evolve.tensors import magnitude
from tests.stages.merge import reference_more as more
from tests.stages.merge.memory import block, memory_model, random_model
from tests.stages.merge.test_methods import call
from tests.stages.merge.test_more_methods import exact, tensors
from tests.stages.merge.test_more_properties import kept
from tests.tensors.rules import trim


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.15), (0.5, 0.6)])
def test_della_clamps_its_probabilities(density: float, epsilon: float) -> None:
    """In mergekit it is an error where density and epsilon reach beyond 0 or 1."""
    base, model, _, _ = tensors((64, 64))
    per_model = {"weight": [1.0], "density": [density], "epsilon": [epsilon]}
    share = (call("della_linear", [model], base, per_model=per_model) != base).double().mean().item()
    chances = more.stay_chances(exact(model[0]), density, epsilon)
    assert share == pytest.approx(sum(chances) / len(chances), abs=0.04)
    assert min(chances) >= 0
    assert max(chances) <= 1


def test_della_of_one_wide_rows_is_dare() -> None:
    """Where mergekit divides 0 by 0."""
    base, model, _, _ = tensors((500, 1))
    per_model = {"weight": [1.0], "density": [0.5]}
    dare = call("dare_linear", [model], base, per_model=per_model)
    assert torch.equal(call("della_linear", [model], base, per_model=per_model), dare)


def test_della_divides_each_element_by_its_own_probability() -> None:
    """One factor for all, as in mergekit, makes small elements, which stay rarely, too small."""
    delta = torch.tensor([4.0, 1.0])
    drawn = torch.stack([kept(delta, 0.5, 0.25, seed) for seed in range(200)])
    assert set(drawn[:, 0].tolist()) == {0.0, 4.0 * np.float32(1 / 0.75)}
    assert set(drawn[:, 1].tolist()) == {0.0, 4.0}


def test_della_ranks_are_exact_in_long_rows() -> None:
    """In bfloat16, 4096 ranks are 768 numbers: neighbours would have the same probability."""
    delta = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    ranks = magnitude.row_ranks(delta, torch.zeros(2, 4096)).long()
    assert torch.equal(ranks, delta.abs().argsort(dim=1).argsort(dim=1))
    # Every one of them has a probability of its own: a factor of its own.
    factors = kept(torch.ones(1, 4096) + torch.arange(4096) * 2.0**-20, 0.5, 0.25, 1)
    assert len(set(factors[factors != 0].tolist())) == int((factors != 0).sum())


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_breadcrumbs_without_outliers_is_trimming(gamma: float) -> None:
    """No element is an outlier where gamma * n is below 1: 0.1.4 dropped the whole task vector there."""
    delta = tensors((64,))[0]
    result = magnitude.drop_outliers_(delta.clone(), 0.9, gamma)
    assert torch.equal(result, trim(delta.clone(), 0.9))
    assert int((result != 0).sum()) == 57


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_of_a_tiny_tensor_keeps_one_element(name: str) -> None:
    """One of three at least stays at any density above 0: the one below the outliers, if there is room."""
    per_model = {"weight": [1.0], "density": [0.1], "gamma": [0.4]}
    assert call(name, [[1.0, -3.0, 2.0]], [0.0] * 3, per_model=per_model).tolist() == [0.0, 0.0, 2.0]
    assert call(name, [[5.0]], [0.0], per_model=per_model).tolist() == [5.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_type_of_the_result_is_that_of_the_models(dtype: str) -> None:
    """The mask of mergekit's arcee_fusion is float32, and so is its result."""
    models = {key: random_model(seed, dtype=dtype) for seed, key in enumerate("ab")}
    result = MergeStage.run(block("arcee_fusion", {"a": {}}, base_model="b"), models, seed=0)
    assert {str(tensor.dtype) for _, tensor in result.tensors()} == {f"torch.{dtype}"}
    assert {spec.dtype for spec in result.specs.values()} == {dtype}


def test_sce_weights_do_not_depend_on_the_size_of_the_changes() -> None:
    """RMS 5e-4 and 1e-4: shares of .96 and .04, where mergekit takes .5 and .5 for so small changes."""
    generator = torch.Generator().manual_seed(0)
    changes = [torch.rand(2000, generator=generator) + 0.5 for _ in range(2)]
    deltas = [5e-4 * changes[0], 1e-4 * changes[1]]
    base = torch.zeros(2000)
    result = call("sce", deltas, base)
    shares = (result - deltas[1]) / (deltas[0] - deltas[1])
    energy = [float((delta.double() ** 2).sum()) for delta in deltas]
    assert shares.mean().item() == pytest.approx(energy[0] / sum(energy), rel=1e-4)
    assert shares.mean().item() == pytest.approx(0.96, abs=0.01)


def test_multislerp_of_unchanged_tensors_is_the_base() -> None:
    """An error in mergekit: three models whose embeddings are frozen cannot be merged."""
    base = tensors((30,))[0]
    result = call("multislerp", [base.clone()] * 3, base, per_model={"weight": [0.2, 0.5, 0.3]})
    assert torch.equal(result, base)


def test_multislerp_of_directions_that_cancel_out_is_the_weighted_sum() -> None:
    angles = [0.0, 2 * math.pi / 3, 4 * math.pi / 3]
    models = [
        torch.tensor([size * math.cos(a), size * math.sin(a)])
        for size, a in zip((1, 2, 3), angles, strict=True)
    ]
    result = call("multislerp", models, per_model={"weight": [1.0, 1.0, 1.0]}, eps=1e-6)
    torch.testing.assert_close(result, sum(models) / 3, rtol=1e-6, atol=1e-6)


def test_nuslerp_rows_are_rows() -> None:
    """Only the first row turns. In mergekit row_wise means columns, and the second row changes too."""
    one, two = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    per_model = {"weight": [0.5, 0.5]}
    result = call("nuslerp", [one, two], per_model=per_model, nuslerp_flatten=False, nuslerp_row_wise=True)
    torch.testing.assert_close(result, torch.tensor([[0.5**0.5, 0.5**0.5], [3.0, 4.0]]))


def test_nuslerp_with_a_zero_task_vector_goes_straight() -> None:
    """Half of the other one, not .707 of it: a zero vector has no direction, so there is no right angle."""
    base = torch.tensor([1.0, 1.0])
    model = torch.tensor([3.0, -3.0])
    result = call("nuslerp", [base.clone(), model], base, per_model={"weight": [0.5, 0.5]})
    assert result.tolist() == [2.0, -1.0]


def test_karcher_has_no_smallest_length() -> None:
    """In mergekit vectors whose length is below tol = 1e-5 are left out."""
    one, two, _, _ = tensors((50,))
    small = call("karcher", [one * 1e-9, two * 1e-9])
    torch.testing.assert_close(small * 1e9, call("karcher", [one, two]))
    assert small.abs().max().item() > 1e-10


@pytest.mark.parametrize("pair", [("karcher", {}), ("multislerp", {"per_model": {"weight": [1.0, 1.0]}})])
def test_opposite_directions_have_no_mean(pair: tuple[str, dict[str, Any]]) -> None:
    """Neither is preferred: the average is the result. In mergekit's karcher rounding errors decide."""
    one = tensors((50,))[0]
    for models in ([one, -3 * one], [-3 * one, one]):
        torch.testing.assert_close(call(pair[0], models, **pair[1]), -one)


def test_model_stock_of_tiny_changes_does_not_fall_back_to_the_base() -> None:
    """Two equal changes of length 9e-5: t is 1. In mergekit it is .016 and the base comes out."""
    delta = torch.full((9,), 3e-5)
    assert torch.equal(call("model_stock", [delta, delta.clone()], torch.zeros(9)), delta)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock_stays_between_base_and_average(count: int) -> None:
    """Opposed changes: mergekit's t is -73 for three of mean cosine -.49, and the result 6 times as long."""
    angles = [2 * math.pi * i / count + 0.02 * i for i in range(count)]
    models = [torch.tensor([math.cos(a), math.sin(a)]) for a in angles]
    assert torch.equal(call("model_stock", models, torch.zeros(2)), torch.zeros(2))


def test_model_stock_counts_an_unchanged_model_as_at_right_angles() -> None:
    change = tensors((30,))[0]
    result = call("model_stock", [change, change.clone(), torch.zeros(30)], torch.zeros(30))
    # Mean cosine of (1, 0, 0) is 1/3: t = 3/5, of an average that is 2/3 of the change.
    torch.testing.assert_close(result, change * (0.6 * 2 / 3))


def test_nearswap_of_tiny_steps() -> None:
    """Each weight moves by t at most; mergekit moves those that are nearer than 1e-6 by a part of that."""
    result = call("nearswap", [[1e-7, 5e-7, -1.0]], [0.0, 0.0, 0.0], t=2e-7)
    torch.testing.assert_close(result, torch.tensor([1e-7, 2e-7, -2e-7]), rtol=1e-6, atol=0)


def test_arcee_fusion_of_a_small_change_chooses_what_float64_does() -> None:
    """In float32 half of mergekit's importances are negative, and a tenth of the choices differ."""
    generator = torch.Generator().manual_seed(0)
    base = 0.05 * torch.randn(40, 64, generator=generator)
    model = base + 1e-4 * torch.randn(40, 64, generator=generator)
    result = call("arcee_fusion", [model], base)
    assert torch.equal(result.double(), torch.from_numpy(more.arcee_fusion(exact(base), exact(model))))


def test_arcee_fusion_uses_every_element_of_a_large_tensor() -> None:
    """From a million elements drawn at random, as in mergekit, two runs give two models."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1100, 1000, generator=generator)
    model = base + 0.1 * torch.randn(1100, 1000, generator=generator)
    result = call("arcee_fusion", [model], base)
    one, two = (torch.softmax(x.double(), 1) + 1e-8 for x in (model, base))
    scores = (model.double() - base.double()).abs() * (one * (one / two).log()).sum(1, keepdim=True)
    ordered = scores.flatten().sort().values
    last = ordered.numel() - 1
    threshold = ordered[last // 2] + 1.5 * (ordered[3 * last // 4] - ordered[last // 4])
    chosen = result == model
    assert (chosen != (scores >= threshold)).double().mean().item() < 1e-5
    assert 0.01 < chosen.double().mean().item() < 0.2


def test_ram_averages_what_is_shared_and_keeps_what_is_not() -> None:
    models = [[1.0, 0.0, 2.0, 0.0], [3.0, 4.0, 0.0, 1e-6]]
    assert call("ram", models, [0.0] * 4).tolist() == [2.0, 4.0, 2.0, 0.0]
    # Each has one shared and one unique entry: rho = 1, above alpha.
    plus = call("ramplus_tl", models, [0.0] * 4, r=0.5, alpha=0.2)
    torch.testing.assert_close(plus, torch.tensor([2.0, 4.4, 2.2, 0.0]))


def test_each_expert_is_trimmed_for_itself() -> None:
    """As a dense layer is. In mergekit a layer's experts are one tensor, and the one that moved far stays."""
    names = [f"model.layers.0.mlp.experts.{number}.down_proj.weight" for number in range(4)]
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(6, 5, generator=generator) for name in names}
    moved = {
        name: tensor + (1.0 if name == names[0] else 0.01) * torch.randn(6, 5, generator=generator)
        for name, tensor in base.items()
    }
    models = {key: memory_model(tensors) for key, tensors in (("base", base), ("moved", moved))}
    merged = MergeStage.run(
        block("ties", {"moved": {"weight": 1.0, "density": 0.5}}, base_model="base"), models, seed=0
    )
    assert [int((merged.tensor(name) != base[name]).sum()) for name in names] == [15] * 4
