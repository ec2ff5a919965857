"""The compiled pass against the one in torch (same bits), and both against float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.tensors.fused import Chance, Everything, RankedChance, Sink, Term, all_finite, merge
from evolve.tensors.fused.eager import merge_eagerly
from evolve.tensors.fused.merge import _rule, merge_compiled
from evolve.tensors.random import draws, draws_on, words
from evolve.tensors.selection import largest_on_device, magnitudes, selection
from tests.tensors.test_rules import draw_word

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def _ranks(delta: torch.Tensor) -> torch.Tensor:
    return delta.abs().argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)


def _inputs(shape, count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    # Coarse steps, so that equal magnitudes and zero deltas occur.
    models = [
        (base.float() + torch.randint(-4, 5, shape, generator=generator) / 16).to(dtype) for _ in range(count)
    ]
    return base, models


def _keep(kind, tensor, base, number):
    delta = tensor.float() - base.float()
    if kind == "magnitude" and delta.numel():
        count = max(1, int(0.4 * delta.numel()))
        return selection(tensor, base).largest(count, tensor, base)
    if kind == "chance":
        return Chance(1234567890123456789 + number, round(0.7 * 2**32))
    if kind in {"ranked", "rescaled"} and delta.dim() and delta.numel():
        # Below 0 for some ranks, above 1 for others.
        step = 1.5 * 2**24 / delta.shape[-1]
        return RankedChance(99 + number, _ranks(delta).to(torch.uint16), -1e6, step, kind == "rescaled")
    return Everything()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["everything", "magnitude", "chance", "ranked", "rescaled"])
@pytest.mark.parametrize("elect", [None, "sum", "mean"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 1), (7, 333), (3, 1024), (2, 3, 4)])
def test_compiled_and_eager_give_the_same_bits(dtype, kind, elect, shape):
    base, models = _inputs(shape, 3, dtype, 1)
    terms = [
        Term(model, weight, _keep(kind, model, base, number), scale)
        for number, (model, weight, scale) in enumerate(
            zip(models, (0.3, -0.7, 1.1), (1.0, 1.9, 0.3), strict=True)
        )
    ]
    options = {"elect": elect, "divisor": 0.7, "factor": 1.3}
    # Rounding has nothing to do with the rule; each combination is compiled for the first run of the tests.
    for target in TYPES if kind == "everything" and elect is None else (dtype,):
        compiled = torch.empty(shape, dtype=target)
        assert merge_compiled(base, terms, compiled, rule=_rule(terms), dtype=target, **options)
        eager = merge_eagerly(base, terms, dtype=target, **options)
        assert compiled.dtype == eager.dtype == target
        assert compiled.shape == eager.shape == torch.Size(shape)
        assert torch.equal(compiled, eager)
        assert torch.equal(merge(base, terms, dtype=target, **options), eager)


@pytest.mark.parametrize("stored", [*TYPES, torch.float64])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_target_gets_the_rounded_result_in_its_own_type(dtype, stored):
    base, models = _inputs((9, 1031), 2, torch.bfloat16, 5)
    terms = [Term(model, 0.37) for model in models]
    plain = merge(base, terms, dtype=dtype)
    sink = Sink(target=torch.full((9, 1031), -3.0, dtype=stored))
    made = merge(base, terms, dtype=dtype, sink=sink)
    assert made is sink.result and sink.finite
    assert (made is sink.target) == (stored != torch.float64)
    assert torch.equal(made, plain.to(made.dtype))


def test_a_target_that_does_not_fit_is_left_alone():
    base, models = _inputs((4, 6), 1, torch.float32, 5)
    for target in (torch.zeros(6, 4), torch.zeros(6, 4).T, torch.zeros(3, 6)):
        sink = Sink(target=target)
        made = merge(base, [Term(models[0], 0.5)], dtype=torch.float32, sink=sink)
        assert made is not target and not target.any()
        assert torch.equal(made, merge(base, [Term(models[0], 0.5)], dtype=torch.float32))


@pytest.mark.parametrize("dtype", TYPES)
def test_finite_is_that_of_the_rounded_result(dtype):
    """Just below and just above the middle between the largest number and infinity."""
    largest = torch.finfo(dtype).max
    step = 2.0 ** (math.floor(math.log2(largest)) - {torch.float32: 23, torch.bfloat16: 7}.get(dtype, 10))
    values = [largest, largest + 0.499 * step] if dtype != torch.float32 else [largest]
    for value in [*values, largest + 0.5 * step, math.inf, math.nan]:
        for sign in (1.0, -1.0):
            sink = Sink()
            result = merge(None, [Term(torch.tensor([1.0, sign * value]), 1.0)], dtype=dtype, sink=sink)
            assert sink.finite == all_finite(result) == (value in values)


@pytest.mark.parametrize("dtype", TYPES)
def test_average_without_a_base(dtype):
    _, models = _inputs((40, 50), 3, dtype, 2)
    weights = (0.2, 0.5, 0.9)
    terms = [Term(model, weight) for model, weight in zip(models, weights, strict=True)]
    exact = sum(w * m.double() for w, m in zip(weights, models, strict=True)) / sum(weights)
    for target in TYPES:
        result = merge(None, terms, dtype=target, divisor=sum(weights))
        assert torch.equal(
            result, merge_eagerly(None, terms, dtype=target, elect=None, divisor=sum(weights), factor=1.0)
        )
        assert torch.allclose(result.double(), exact, atol=1e-6, rtol=torch.finfo(target).eps)


def test_mixed_types_are_widened():
    base, models = _inputs((30, 40), 2, torch.bfloat16, 3)
    mixed = [Term(models[0].float(), 0.5), Term(models[1], 0.25)]
    plain = [Term(models[0], 0.5), Term(models[1], 0.25)]
    assert torch.equal(merge(base, mixed, dtype=torch.float32), merge(base, plain, dtype=torch.float32))


def test_a_view_is_read_in_its_order():
    base, models = _inputs((30, 40), 1, torch.float32, 3)
    turned = merge(base.T, [Term(models[0].T, 0.5)], dtype=torch.float32)
    assert torch.equal(turned, merge(base, [Term(models[0], 0.5)], dtype=torch.float32).T)


@pytest.mark.parametrize("dtype", TYPES)
def test_rounding_is_to_nearest_even(dtype):
    values = torch.cat([torch.randn(5000) * 10.0**k for k in range(-8, 5)])
    result = merge(None, [Term(values, 1.0)], dtype=dtype)
    assert torch.equal(result, values.to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("elect", [None, "sum", "mean"])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_finite_comes_through(bad, elect, dtype):
    base, models = _inputs((5, 700), 3, dtype, 4)
    models[1][3, 5] = bad
    for keep in (Everything(), Chance(5, 1 << 20)):
        terms = [Term(model, 0.5, keep) for model in models]
        result = merge(base, terms, dtype=dtype, elect=elect)
        assert not all_finite(result)
        result[3, 5] = 0
        assert all_finite(result)


@pytest.mark.parametrize("word", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("target", TYPES)
def test_no_payload_of_a_nan_is_lost(word, target):
    """A GPU's own NaN has all bits set: rounded up as a number it would become a zero."""
    values = torch.from_numpy(np.array([word, 0x3F800000], np.uint32).view(np.float32))
    for elect in (None, "sum", "mean"):
        result = merge(None, [Term(values, 1.0)], dtype=target, elect=elect)
        assert not all_finite(result)
        assert result[1] == 1


@pytest.mark.parametrize("word", [0x7FFF, 0xFFFF, 0x7C01, 0x7C00])
@pytest.mark.parametrize("target", TYPES)
def test_no_payload_of_a_float16_nan_is_lost(word, target):
    values = torch.from_numpy(np.array([word, 0x3C00], np.uint16).view(np.float16))
    result = merge(None, [Term(values, 1.0)], dtype=target)
    assert not all_finite(result)
    assert result[1] == 1


@pytest.mark.parametrize("dtype", [*TYPES, torch.float64])
def test_all_finite(dtype):
    values = torch.randn(20_000).to(dtype)
    assert all_finite(values) and all_finite(values[:0]) and all_finite(values.view(200, 100).T)
    assert all_finite(torch.full((9,), torch.finfo(dtype).max, dtype=dtype))
    for bad in (math.nan, math.inf, -math.inf):
        values[19_999] = bad
        assert not all_finite(values)
    assert all_finite(torch.arange(5))


# Salmon et al. publish these with their code (Random123, kat_vectors): counter, key, result of philox4x32_10.
KNOWN = [((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))]


def test_the_generator_is_philox():
    block = words(0, 0, 1024)
    assert tuple(int(block[256 * word]) for word in range(4)) == KNOWN[0][2]


def _philox(counter, key):
    """One counter in Python's own integers, from the paper."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ m, p & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


@given(seed=st.integers(0, 2**64 - 1), element=st.integers(0, 2**20))
@settings(deadline=None, max_examples=50)
def test_every_word_is_that_of_its_place(seed, element):
    block, inside = divmod(element, 1024)
    expected = _philox((block * 256 + inside % 256, 0, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))[inside // 256]
    assert int(words(seed, block * 1024, inside + 1)[inside]) == expected


@given(seed=st.integers(0, 2**64 - 1), element=st.integers(0, 2**20))
@settings(deadline=None, max_examples=50)
def test_every_draw_is_that_of_its_place(seed, element):
    assert int(draws(seed, element, 1)[0]) == draw_word(seed, element)


def test_draws_on_a_device_are_the_same():
    for count in (0, 1, 1023, 5000):
        expected = torch.from_numpy(draws(2**64 - 3, 0, count).astype(np.int64))
        assert torch.equal(draws_on(torch.device("cpu"), 2**64 - 3, count), expected)


@given(
    size=st.integers(1, 3000),
    share=st.floats(0, 1),
    steps=st.sampled_from([1, 3, 50, 10**9]),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_selection_keeps_exactly_the_largest_and_of_equals_the_first(size, share, steps, dtype, seed):
    generator = np.random.default_rng(seed)
    base = torch.zeros(size, dtype=dtype)
    values = generator.integers(-steps, steps + 1, size) / steps
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    count = min(size, max(1, int(share * size)))
    keep = selection(tensor, base).largest(count, tensor, base)
    result = merge(base, [Term(tensor, 1.0, keep)], dtype=torch.float32)
    sizes = tensor.double().abs().tolist()
    order = sorted(range(size), key=lambda i: (-sizes[i], i))[:count]
    expected = torch.zeros(size)
    expected[order] = tensor.float()[order]
    assert torch.equal(result, expected)


def test_selection_of_many_distinct_magnitudes_is_exact_and_small():
    generator = torch.Generator().manual_seed(6)
    tensor, base = torch.randn((2, 300_000), generator=generator)
    table = selection(tensor, base)
    assert not table.complete and table.nbytes < 20_000
    falling = np.sort(magnitudes(tensor, base))[::-1]
    for count in (1, 2, 292, 293, 294, 1000, 150_000, 299_999, 300_000):
        keep = table.largest(count, tensor, base)
        threshold = falling[count - 1]
        # Some magnitudes are equal by chance.
        assert (keep.threshold, keep.ties) == (threshold, count - np.count_nonzero(falling > threshold))


def test_selection_of_bfloat16_is_complete():
    base = torch.randn(300_000).mul(0.02).bfloat16()
    tensor = (base.float() + torch.randn(300_000) * 0.001).bfloat16()
    assert selection(tensor, base).complete


@given(
    size=st.integers(1, 500),
    share=st.floats(0, 1),
    steps=st.sampled_from([1, 3, 10**9]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=50)
def test_the_selection_of_a_device_is_that_of_the_table(size, share, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(size)
    tensor = torch.randint(-steps, steps + 1, (size,), generator=generator) / steps
    count = min(size, max(1, int(share * size)))
    assert largest_on_device(count, tensor, base) == selection(tensor, base).largest(count, tensor, base)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["everything", "magnitude", "chance", "ranked", "rescaled"])
@pytest.mark.parametrize("elect", [None, "sum", "mean"])
def test_a_gpu_gives_the_bits_of_the_cpu(dtype, kind, elect):
    base, models = _inputs((70, 333), 3, dtype, 1)
    terms = [Term(model, 0.3 + n, _keep(kind, model, base, n), 1.9) for n, model in enumerate(models)]
    moved = [replace(term, tensor=term.tensor.cuda(), keep=_moved(term.keep)) for term in terms]
    options = {"dtype": dtype, "elect": elect, "divisor": 0.7, "factor": 1.3}
    assert torch.equal(merge(base.cuda(), moved, **options).cpu(), merge(base, terms, **options))


def _moved(keep):
    if not isinstance(keep, RankedChance):
        return keep
    return replace(keep, ranks=keep.ranks.cuda())
