"""The methods that mergekit does not have, against float64 from the papers and for what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import CandidateError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.base import Inputs, Statistic
from tests.stages.merge import reference_beyond as ref

NAMES = ("uniform_soup", "wise_ft", "geometric_median", "tsv", "fisher", "regmean")
LAYER = "model.layers.0.mlp.up_proj.weight"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(
    name: str,
    models: list[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    tensor: str = LAYER,
    weights: list[float] | None = None,
    statistics: list[Statistic | None] | None = None,
    **shared: Any,
) -> torch.Tensor:
    method = MERGE_METHODS.load(name)
    weights = weights or [1.0] * len(models)
    return method.merge(
        Inputs(
            name=tensor,
            tensors=tuple(models),
            base=base,
            per_model=tuple({"weight": weight} if method.per_model else {} for weight in weights),
            shared={p.name: shared.get(p.name, p.default) for p in method.shared},
            seeds=tuple(range(len(models))),
            statistics=tuple(statistics or ()),
        )
    )


def wide(tensors: list[torch.Tensor]) -> list[Any]:
    return [tensor.double().numpy() for tensor in tensors]


def close(found: torch.Tensor, expected: Any, atol: float = 2e-6) -> bool:
    return np.allclose(found.double().numpy(), expected, rtol=2e-6, atol=atol)


vectors = st.integers(1, 5).flatmap(
    lambda count: st.lists(
        st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6), min_size=count, max_size=count
    )
)


@given(vectors)
def test_uniform_soup(models: list[list[float]]) -> None:
    tensors = [torch.tensor(model) for model in models]
    assert close(call("uniform_soup", tensors), ref.uniform_soup(wide(tensors)))


@given(vectors, st.floats(0, 1))
def test_wise_ft(models: list[list[float]], alpha: float) -> None:
    base, model = torch.tensor(models[0]), torch.tensor(models[-1])
    assert close(call("wise_ft", [model], base, alpha=alpha), ref.wise_ft(*wide([base, model]), alpha))


def test_the_ends_of_wise_ft_are_the_models() -> None:
    base, model = noise(50), noise(50, seed=1)
    assert torch.equal(call("wise_ft", [model], base, alpha=0.0), base)
    assert torch.equal(call("wise_ft", [model], base, alpha=1.0), model)


@given(st.integers(1, 5), st.integers(0, 99))
def test_geometric_median(count: int, seed: int) -> None:
    models = [noise(2, 3, seed=10 * seed + i) for i in range(count)]
    weights = [1.0 + 0.3 * i for i in range(count)]
    expected = ref.geometric_median(np.stack([m.reshape(-1) for m in wide(models)]), np.array(weights))
    found = call("geometric_median", models, weights=weights)
    assert found.shape == (2, 3)
    # The median of more than two points that lie on no line is one point.
    assert count == 2 or close(found.reshape(-1), expected)


def test_tsv_in_a_layer() -> None:
    base, models = noise(12, 8), [noise(12, 8, seed=1), noise(12, 8, seed=2)]
    merged = ref.tsv([m - b for m, b in zip(wide(models), wide([base]) * 2, strict=True)])
    assert close(call("tsv", models, base), wide([base])[0] + merged, 1e-5)
    half = wide([base])[0] + 0.5 * merged
    assert close(call("tsv", models, base, **{"lambda": 0.5}), half, 1e-5)


@pytest.mark.parametrize(
    ("tensor", "shape", "embeddings", "averaged"),
    [
        (LAYER, (6, 5), False, False),
        ("model.embed_tokens.weight", (6, 5), False, True),
        ("lm_head.weight", (6, 5), False, True),
        ("lm_head.weight", (6, 5), True, False),
        ("transformer.wpe.weight", (6, 5), False, True),
        ("model.layers.0.input_layernorm.weight", (6,), True, True),
        ("model.layers.0.conv.weight", (6, 5, 2), True, True),
        ("scale", (), True, True),
    ],
)
def test_what_tsv_does_not_take_apart_is_averaged(
    tensor: str, shape: tuple[int, ...], embeddings: bool, averaged: bool
) -> None:
    base, models = noise(*shape), [noise(*shape, seed=1), noise(*shape, seed=2)]
    found = call("tsv", models, base, tensor=tensor, embeddings=embeddings, **{"lambda": 0.5})
    mean = base + 0.5 * ((models[0] - base) + (models[1] - base)) / 2
    assert torch.allclose(found, mean, atol=1e-6) == averaged


def test_the_rank_of_tsv() -> None:
    base, models = torch.zeros(12, 8), [noise(12, 8, seed=1), noise(12, 8, seed=2)]
    assert close(call("tsv", models, base, rank=0.25), ref.tsv(wide(models), 0.25), 1e-5)
    assert torch.linalg.matrix_rank(call("tsv", models, base, rank=0.25)).item() == 4
    assert torch.equal(call("tsv", models, base), call("tsv", models, base, rank=0.5))


def fishers(*tensors: torch.Tensor) -> list[Statistic | None]:
    return [Statistic(t, float(t.double().mean())) for t in tensors]


@given(st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_fisher(count: int, normalize: bool, seed: int) -> None:
    models = [noise(20, seed=10 * seed + i) for i in range(count)]
    known = [noise(20, seed=10 * seed + 5 + i).square() * 3.0**i for i in range(count)]
    weights = [1.0 + i for i in range(count)]
    factors = [1 / f.mean() if normalize else np.float64(1) for f in wide(known)]
    scaled = [f * factor for f, factor in zip(wide(known), factors, strict=True)]
    found = call(
        "fisher", models, weights=weights, statistics=fishers(*known), normalize=normalize, floor=0.0
    )
    assert close(found, ref.fisher(wide(models), scaled, weights))


def test_models_with_larger_information_do_not_win_unless_they_should() -> None:
    models = [noise(30), noise(30, seed=1)]
    known = [noise(30, seed=2).square(), noise(30, seed=3).square()]
    plain = call("fisher", models, statistics=fishers(*known))
    loud = call("fisher", models, statistics=fishers(known[0], known[1] * 1e4))
    assert torch.allclose(plain, loud, atol=1e-5)
    loud = call("fisher", models, statistics=fishers(known[0], known[1] * 1e9), normalize=False, floor=0.0)
    assert torch.allclose(loud, models[1], atol=1e-3)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_floor_counts_in_means_whatever_the_size(normalize: bool, size: float) -> None:
    """An absolute floor lies above all the information of a large model, and its merges are means."""
    models = [torch.tensor([1.0, 1.0]), torch.tensor([5.0, 5.0])]
    known = [torch.tensor([0.0, 2.0]) * size, torch.tensor([0.0, 2.0]) * size]
    found = call("fisher", models, weights=[1.0, 3.0], statistics=fishers(*known), normalize=normalize)
    assert torch.allclose(found, torch.tensor([4.0, 4.0]))
    known[0][0] = 1.0 * size
    found = call("fisher", models, statistics=fishers(*known), normalize=normalize)
    assert found[0] == pytest.approx(1.0, abs=1e-4)


def test_a_model_without_any_information() -> None:
    models = [noise(5), noise(5, seed=1)]
    found = call("fisher", models, statistics=fishers(torch.zeros(5), torch.zeros(5)))
    assert torch.allclose(found, (models[0] + models[1]) / 2, atol=1e-6)


def grams(rows: int, count: int, axis: int = 1) -> list[Statistic | None]:
    found: list[Statistic | None] = []
    for i in range(count):
        inputs = noise(40, rows, seed=77 + i)
        found.append(Statistic(inputs.T @ inputs / 40, 1.0, axis))
    return found


def values(statistics: list[Statistic | None]) -> list[Any]:
    return wide([one.values for one in statistics if one is not None])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_regmean_of_linear_layers(alpha: float) -> None:
    models = [noise(4, 6, seed=i) for i in range(3)]  # (out, in), as torch has it
    known = grams(6, 3)
    weights = [1.0, 2.0, 0.5]
    expected = ref.regmean([m.T for m in wide(models)], values(known), weights, alpha).T
    found = call("regmean", models, weights=weights, statistics=known, alpha=alpha)
    assert close(found, expected, 1e-5)
    assert found.is_contiguous()


def test_regmean_of_gpt2s_layers_which_are_the_other_way_round() -> None:
    """Square, so that a wrong side does not show in the shapes."""
    models = [noise(6, 6, seed=i) for i in range(2)]
    known = grams(6, 2, axis=0)
    expected = ref.regmean(wide(models), values(known), [1.0, 1.0], 0.9)
    assert close(call("regmean", models, statistics=known), expected, 1e-5)
    turned = call("regmean", [m.T.contiguous() for m in models], statistics=grams(6, 2, axis=1))
    assert close(turned.T, expected, 1e-5)


def test_regmean_keeps_what_every_layer_would_answer() -> None:
    """Two layers that see inputs in different directions: both answer as before, which no mean does."""
    models = [noise(3, 4, seed=1), noise(3, 4, seed=2)]
    inputs = [torch.zeros(9, 4), torch.zeros(9, 4)]
    inputs[0][:, :2], inputs[1][:, 2:] = noise(9, 2, seed=3), noise(9, 2, seed=4)
    known: list[Statistic | None] = [Statistic(x.T @ x / 9) for x in inputs]
    merged = call("regmean", models, statistics=known, alpha=1.0)
    for model, x in zip(models, inputs, strict=True):
        assert torch.allclose(x @ merged.T, x @ model.T, atol=1e-4)


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_where_nothing_is_known_of_a_tensor_it_is_the_weighted_mean(name: str) -> None:
    models = [noise(7), noise(7, seed=1)]
    expected = 0.25 * models[0] + 0.75 * models[1]
    some: list[Statistic | None] = [Statistic(torch.ones(7)), None]
    for statistics in (None, [None, None], some):
        found = call(name, models, weights=[1.0, 3.0], statistics=statistics)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["geometric_median", "fisher", "regmean"])
def test_weights(name: str) -> None:
    models = [noise(4, 4), noise(4, 4, seed=1), noise(4, 4, seed=2)]
    statistics = grams(4, 3) if name == "regmean" else fishers(*(m.square() for m in models))
    only = call(name, models, weights=[0.0, 1.0, 0.0], statistics=statistics)
    assert torch.allclose(only, models[1], atol=1e-5)
    one, two = (
        call(name, models, weights=[w * f for w in (1.0, 2.0, 3.0)], statistics=statistics) for f in (1, 10)
    )
    assert torch.allclose(one, two, atol=1e-5)
    with pytest.raises(CandidateError, match="sum to zero"):
        call(name, models, weights=[0.0, 0.0, 0.0], statistics=statistics)


@pytest.mark.parametrize("name", ["uniform_soup", "geometric_median", "tsv", "fisher", "regmean"])
def test_the_order_of_the_models_does_not_matter(name: str) -> None:
    models = [noise(6, 6), noise(6, 6, seed=1), noise(6, 6, seed=2)]
    base = noise(6, 6, seed=3) if name == "tsv" else None
    statistics = grams(6, 3) if name == "regmean" else fishers(*(m.square() for m in models))
    weights = [0.7, 0.4, 1.2]
    first = call(name, models, base, weights=weights, statistics=statistics)
    turned = call(name, models[::-1], base, weights=weights[::-1], statistics=statistics[::-1])
    assert torch.allclose(first, turned, atol=1e-5)


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_merging_a_model_with_itself_gives_it_back_with_statistics(name: str) -> None:
    model = noise(6, 6)
    statistics = grams(6, 2) if name == "regmean" else fishers(model.square(), noise(6, 6, seed=4).square())
    assert torch.equal(call(name, [model, model], statistics=statistics), model)


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_is_named(name: str) -> None:
    method = MERGE_METHODS.load(name)
    assert "arXiv:" in method.paper
    assert not method.mergekit
