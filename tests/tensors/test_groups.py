"""Sums and buckets over groups of a vocabulary, against float64."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.tensors.groups import event_buckets, grouped_log_sum, sorted_pair


@given(st.integers(0, 10_000), st.floats(0.1, 300))
def test_groups_are_sums_also_where_they_are_small(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    log_q = (scale * torch.randn((3, 8), generator=draw, dtype=torch.float64)).log_softmax(-1)
    log_q = log_q.requires_grad_()
    group = torch.tensor([0, 1, 1, 3, 3, 3, -1, 0])
    found = grouped_log_sum(log_q, group, 5)
    for number in range(5):
        members = log_q[:, group == number]
        truth = members.logsumexp(-1) if members.shape[1] else torch.full((3,), -1e5, dtype=torch.float64)
        torch.testing.assert_close(found[:, number], truth.clamp(min=-1e5))
    (gradient,) = torch.autograd.grad(found.sum(), log_q)
    assert gradient.isfinite().all() and not gradient[:, 6].any()


def test_an_event_and_its_opposite_are_one() -> None:
    log_a = torch.tensor([-1e9, -700.0, -40.0, -1.0, -0.5, -1e-3, -1e-12, 0.0, 1e-9], dtype=torch.float64)
    log_a = log_a.requires_grad_()
    found = event_buckets(log_a)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(found[5, 1].exp(), torch.tensor(-math.expm1(-1e-3), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), log_a)
    assert gradient.isfinite().all()
    p, q = sorted_pair(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-5.0, -2.0, -4.0]]))
    assert p.tolist() == [[-1, -3, -1e5]] and q.tolist() == [[-2, -4, -5]]
