"""Divergences: identities, bounds, limits, gradients by finite differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors import divergence as dv

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ALL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": dv.forward_kl,
    "reverse_kl": dv.reverse_kl,
    "jensen_shannon": lambda p, q: dv.jensen_shannon(p, q, 0.3),
    "skew_kl": lambda p, q: dv.skew_kl(p, q, 0.1),
    "skew_reverse_kl": lambda p, q: dv.skew_reverse_kl(p, q, 0.1),
    "total_variation": dv.total_variation,
}


def logits(seed: int, size: int = 7, scale: float = 2.0, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)


def pair(seed: int, **options: float) -> tuple[Tensor, Tensor]:
    size, scale = int(options.get("size", 7)), options.get("scale", 2.0)
    return (
        dv.log_probabilities(logits(seed, size, scale)),
        dv.log_probabilities(logits(seed + 1, size, scale)),
    )


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 1000), size=st.integers(1, 20), scale=st.sampled_from([0.01, 1.0, 20.0]))
def test_never_negative_and_zero_for_equals(name: str, seed: int, size: int, scale: float) -> None:
    p, q = pair(seed, size=size, scale=scale)
    assert (ALL[name](p, q) >= -1e-14).all()
    assert ALL[name](p, p).abs().max() < 1e-14
    assert ALL[name](p.float(), q.float()).min() > -1e-5


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 3.0, 100.0]), beta=st.floats(0.01, 0.99))
def test_jensen_shannon_is_bounded_and_mirrors(seed: int, scale: float, beta: float) -> None:
    p, q = pair(seed, scale=scale)
    found = dv.jensen_shannon(p, q, beta)
    torch.testing.assert_close(found, dv.jensen_shannon(q, p, 1 - beta))
    entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)  # log 2 at beta = 1/2
    assert (found <= entropy + 1e-12).all()


@pytest.mark.parametrize(("beta", "limit"), [(1e-6, dv.forward_kl), (1 - 1e-6, dv.reverse_kl)])
def test_jensen_shannon_over_beta_goes_to_the_kls(
    beta: float, limit: Callable[[Tensor, Tensor], Tensor]
) -> None:
    p, q = pair(3)
    scaled = dv.jensen_shannon(p, q, beta) / min(beta, 1 - beta)
    torch.testing.assert_close(scaled, limit(p, q), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.1])
def test_the_ends_of_beta_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must lie between 0 and 1"):
        dv.jensen_shannon(*pair(0), beta)


@pytest.mark.parametrize(
    ("skew", "plain"), [(dv.skew_kl, dv.forward_kl), (dv.skew_reverse_kl, dv.reverse_kl)]
)
def test_skew_runs_from_the_plain_kl_to_zero(
    skew: Callable[[Tensor, Tensor, float], Tensor], plain: Callable[[Tensor, Tensor], Tensor]
) -> None:
    p, q = pair(5)
    assert torch.equal(skew(p, q, 0.0), plain(p, q))
    assert not skew(p, q, 1.0).any()
    torch.testing.assert_close(skew(p, q, 1e-9), plain(p, q), rtol=1e-5, atol=0)
    values = [skew(p, q, alpha).sum().item() for alpha in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert values == sorted(values, reverse=True)
    # Bounded by -log(alpha), where the plain one is not.
    far = torch.tensor([[0.0, -500.0]], dtype=torch.float64)
    assert skew(far, far.flip(-1), 0.1).item() == pytest.approx(-math.log(0.1))


def test_total_variation_is_what_is_not_accepted() -> None:
    p, q = pair(7)
    accepted = torch.minimum(p.exp(), q.exp()).sum(-1)
    torch.testing.assert_close(dv.total_variation(p, q), 1 - accepted)


@pytest.mark.parametrize("name", ALL)
def test_gradients_by_finite_differences(name: str) -> None:
    p, student = dv.log_probabilities(logits(1)), logits(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ALL[name](p, dv.log_probabilities(z, 1.7)), (student,))


def test_temperature_and_types() -> None:
    values = logits(0)
    torch.testing.assert_close(dv.log_probabilities(values, 2.0).exp().sum(-1), torch.ones(3).double())
    torch.testing.assert_close(dv.log_probabilities(values, 2.0), (values / 2).log_softmax(-1))
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert dv.log_probabilities(values.to(dtype)).dtype == expected


def test_bfloat16_is_not_the_type_of_the_arithmetic() -> None:
    """A softmax in bfloat16 gives a negative divergence here."""
    one = logits(0, 5000, 1.0, 20)
    two = one + 0.01 * logits(1, 5000, 1.0, 20)
    p, q = one.bfloat16(), two.bfloat16()
    naive = dv.forward_kl(p.log_softmax(-1), q.log_softmax(-1)).mean().item()
    exact = dv.forward_kl(p.double().log_softmax(-1), q.double().log_softmax(-1)).mean().item()
    found = dv.forward_kl(dv.log_probabilities(p), dv.log_probabilities(q)).mean().item()
    assert found == pytest.approx(exact, rel=1e-2)
    assert abs(naive - exact) > 10 * abs(found - exact)
