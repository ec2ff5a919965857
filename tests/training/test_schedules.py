from __future__ import annotations

from itertools import pairwise

import pytest

from evolve.training.schedules import arguments, infinite


def test_infinite() -> None:
    rates = [infinite(step, 1000, warmup_steps=10, minimum=0.01) for step in range(1001)]
    assert rates[0] == 0
    assert rates[10] == max(rates) == 1.0
    assert rates[305] == pytest.approx(0.3 + 0.7 / 2), "half way of the cosine"
    assert rates[600:901] == [0.3] * 301
    assert rates[950] == pytest.approx((0.3 * 0.01) ** 0.5), "half way of the exponential"
    assert rates[1000] == pytest.approx(0.01)
    assert all(after <= before for before, after in pairwise(rates[10:]))


def test_a_few_steps() -> None:
    for total in range(1, 8):
        for warmup in range(total + 1):
            rates = [infinite(step, total, warmup_steps=warmup) for step in range(total + 1)]
            assert all(0 <= rate <= 1 for rate in rates)
    assert infinite(3, 4, warmup_steps=0, annealing=0.0) == 0.3


def test_warmup_stable_decay_of_transformers() -> None:
    import torch
    from transformers import get_scheduler

    def rates(**settings: float) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = get_scheduler(
            "warmup_stable_decay", optimizer, 5, 50, arguments("warmup_stable_decay", 50, 5, settings)
        )
        found = []
        for _ in range(50):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    found = rates()
    assert found[5:41] == [1.0] * 36
    assert found[41] < 1.0
    assert rates(num_decay_steps=20)[30] == 1.0
    assert rates(num_decay_steps=20)[31] < 1.0
    assert arguments("cosine", 50, 5) == {}
