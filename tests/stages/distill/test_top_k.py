"""A teacher's k best tokens, and one bucket for the rest."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals, TopK
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Logits
from tests.stages.distill.batches import DIVERGENCES, FAMILIES, Batch, logits_loss, make_batch

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.distill.objective import Losses


def best(batch: Batch, k: int, temperature: float = 1.0, dtype: torch.dtype = torch.float64) -> TopK:
    logits = batch.teacher[..., : batch.vocabulary] / temperature
    log_p, tokens = logits.log_softmax(-1).topk(k)
    return TopK(tokens, log_p.to(dtype), temperature)


def top_k_loss(
    functions: list[dict[str, Any]], batch: Batch, teacher: TopK, dtype: torch.dtype = torch.float64
) -> tuple[Losses, Tensor]:
    student = batch.student.clone().to(dtype).requires_grad_()
    found = distillation_loss(
        make_terms(functions),
        Signals(Logits(student)),
        Signals(teacher),
        batch.labels,
        num_items=batch.items,
        vocabulary=batch.vocabulary,
        chunk=2,
    )
    found.total.backward()
    assert student.grad is not None
    return found, student.grad


@pytest.mark.parametrize("name", DIVERGENCES)
@given(seed=st.integers(0, 1000), k=st.integers(1, 10), scale=st.sampled_from([0.3, 3.0]))
def test_it_is_the_loss_of_the_buckets(name: str, seed: int, k: int, scale: float) -> None:
    """The same loss between dense distributions over k + 1 things."""
    batch = make_batch(seed, scale=scale, padding=(2, 0))
    teacher = best(batch, k)
    student = batch.student[..., : batch.vocabulary].clone().requires_grad_()
    q = student.softmax(-1)
    picked = q.gather(-1, teacher.tokens)
    rest = 1 - picked.sum(-1, keepdim=True)
    p = teacher.log_p.exp()
    dense = Batch(
        torch.cat([picked, rest], -1).log(),
        torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1).log(),
        batch.labels.clamp(max=k),
        k + 1,
    )
    expected = distillation_loss(
        make_terms([{"function": name}]),
        Signals(Logits(dense.student)),
        Signals(Logits(dense.teacher)),
        dense.labels,
        num_items=batch.items,
    )
    expected.total.backward()
    found, gradient = top_k_loss([{"function": name}], batch, teacher)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-8, abs=1e-10)
    assert student.grad is not None
    torch.testing.assert_close(gradient[..., : batch.vocabulary], student.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_it_is_a_lower_bound_that_rises_to_the_whole(name: str) -> None:
    batch = make_batch(vocabulary=40, size=(3, 6))
    whole, gradient = logits_loss([{"function": name}], batch, torch.float64)
    found = [top_k_loss([{"function": name}], batch, best(batch, k)) for k in (1, 4, 16, 39, 40)]
    values = [loss.total.item() for loss, _ in found]
    assert all(less <= more + 1e-12 for less, more in itertools.pairwise(values))
    assert values[-1] == pytest.approx(whole.total.item(), rel=1e-9)
    torch.testing.assert_close(found[-1][1], gradient)
    # With one token left for the bucket nothing is lost either.
    assert values[-2] == pytest.approx(whole.total.item(), rel=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 5, 11])
def test_float32_of_peaked_teachers(name: str, k: int) -> None:
    """The k tokens may have all of the mass; float32 then says a little more than all."""
    batch = make_batch(size=(3, 7), scale=30.0)
    found, gradient = top_k_loss(
        [{"function": name}], batch, best(batch, k, dtype=torch.float32), torch.float32
    )
    assert found.total.isfinite()
    assert gradient.isfinite().all()
    expected, _ = top_k_loss([{"function": name}], batch, best(batch, k))
    if name == "reverse_kl" and k < 11:
        # A rest below the resolution counts as the resolution: the bound is lower, and never huge.
        assert 0 < found.total <= expected.total * (1 + 1e-5)
    else:
        assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_cost_nothing(name: str) -> None:
    batch = make_batch()
    batch.teacher = batch.student.clone()
    found, _ = top_k_loss([{"function": name}], batch, best(batch, 3))
    assert abs(found.total.item()) < 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_missing_places_are_not_there(name: str) -> None:
    """-inf with any id: the same as fewer tokens, in value and gradient."""
    batch = make_batch()
    teacher = best(batch, 3)
    more = TopK(
        torch.cat([teacher.tokens, torch.zeros_like(teacher.tokens)], -1),
        torch.cat([teacher.log_p, torch.full_like(teacher.log_p, -math.inf)], -1),
    )
    expected, gradient = top_k_loss([{"function": name}], batch, teacher)
    found, other = top_k_loss([{"function": name}], batch, more)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(other, gradient)


def test_cross_entropy_sees_the_whole_vocabulary() -> None:
    batch = make_batch()
    expected, _ = logits_loss(FAMILIES, batch, torch.float64)
    found, _ = top_k_loss(FAMILIES, batch, best(batch, 2))
    assert found.terms[0].item() == pytest.approx(expected.terms[0].item())
    assert not torch.allclose(found.terms[1:], expected.terms[1:])


def test_a_tail_is_not_tempered_again() -> None:
    batch = make_batch()
    warm = {"function": "kl", "temperature": 2.0}
    with pytest.raises(ValueError, match="temperature 1 and cannot be used at 2"):
        top_k_loss([warm], batch, best(batch, 4))
    # Taken at that temperature, it can be used at it; all of them are the whole distribution.
    found, _ = top_k_loss([warm], batch, best(batch, 11, 2.0))
    assert found.total.item() == pytest.approx(logits_loss([warm], batch, torch.float64)[0].total.item())
    # Cross-entropy has no temperature, and minds none.
    top_k_loss([warm, {"function": "cross_entropy"}], batch, best(batch, 4, 2.0))


def test_what_a_top_k_cannot_give_is_refused() -> None:
    batch = make_batch()
    teacher = best(batch, 4)
    with pytest.raises(ValueError, match="needs the hidden of both"):
        top_k_loss([{"function": "hs_mse"}], batch, teacher)
    outside = TopK(teacher.tokens + 11, teacher.log_p)
    with pytest.raises(ValueError, match="is outside the vocabulary of 11"):
        top_k_loss([{"function": "kl"}], batch, outside)
