"""The learning rate of every step and parameter, seen in how far parameters move, against closed forms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.training.arguments import TrainingArgs
from evolve.training.control import control_of
from evolve.training.phases import Phase
from evolve.training.schedules import infinite
from tests.training.test_trainer import make_network, make_rows, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from evolve.training.rows import Row

STEPS, LAYERS, RATE = 20, 3, 0.01
HEAD, NORM, EMBED = "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"
NAMES = (HEAD, NORM, *(f"model.layers.{n}.mlp.up_proj.weight" for n in range(LAYERS)), EMBED)
DEPTHS = dict(zip(NAMES, (0, 0, 3, 2, 1, 4), strict=True))


class Slope:
    """A loss whose gradient is 1 everywhere: a step of plain SGD moves a parameter by its rate."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def look(self, network: Any) -> None:
        values = dict(network.named_parameters())
        self.seen.append({name: values[name].detach().flatten()[0].item() for name in NAMES})

    def prepare(self, network: Any, rows: Sequence[Row], *, step: int) -> Sequence[Row]:
        self.look(network)
        return rows

    def loss(
        self, network: Any, rows: Sequence[Row], *, num_items: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        return sum((p.sum() for p in network.parameters() if p.requires_grad), torch.zeros(())), {}


def moved(folder: Path, phases: Sequence[Phase] = (), **options: Any) -> list[dict[str, float]]:
    """Return how far each of NAMES moved in each step, in units of the largest rate."""
    network = make_network(layers=LAYERS, tied=False)
    for parameter in network.parameters():
        parameter.data.zero_()
    options = {"optim": "sgd", "max_grad_norm": 0, "learning_rate": RATE, **options}
    control = control_of(network, TrainingArgs(**options), phases)
    slope = Slope()
    rows = make_rows(STEPS)
    run(
        folder, rows, objective=slope, network=network, control=control,
        per_device_train_batch_size=1, **options,
    )  # fmt: skip
    slope.look(network)
    assert len(slope.seen) == STEPS + 1
    return [
        {name: (before[name] - after[name]) / RATE for name in NAMES}
        for before, after in zip(slope.seen, slope.seen[1:], strict=False)
    ]


def cosine(step: int) -> float:
    return step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))


def stable(step: int) -> float:
    """Up from a tenth in 4 steps, down to a tenth of the rate in the last 5, linearly."""
    return 0.1 + 0.9 * step / 4 if step < 4 else 1.0 if step < 15 else 1 - 0.9 * (step - 15) / 5


def default_stable(step: int) -> float:
    return step / 4 if step < 4 else 1.0 if step < 18 else 0.5 * (1 + math.cos(math.pi * (step - 18) / 2))


def endless(step: int) -> float:
    """Up in 4 steps, down to 0.4 in 6 by a cosine, from step 16 on down to 0.1 by 1 - sqrt."""
    if step < 4:
        return step / 4
    if step < 10:
        return 0.4 + 0.6 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 6))
    if step < 16:
        return 0.4
    return 0.1 + 0.3 * (1 - math.sqrt((step - 16) / 4))


SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "cosine": ({"lr_scheduler_type": "cosine"}, cosine),
    "stable": (
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 0.25, "min_lr_ratio": 0.1, "decay_type": "linear"},
        },
        stable,
    ),
    "default_stable": ({"lr_scheduler_type": "warmup_stable_decay"}, default_stable),
    "infinite": (
        {
            "lr_scheduler_type": "infinite",
            "lr_scheduler_kwargs": {
                "num_cooldown_steps": 0.3,
                "constant_lr_ratio": 0.4,
                "num_decay_steps": 4,
                "min_lr_ratio": 0.1,
                "decay_type": "1-sqrt",
            },
        },
        endless,
    ),
}


def same(found: list[dict[str, float]], wanted: Callable[[int, str], float]) -> None:
    for step, row in enumerate(found):
        for name, value in row.items():
            assert value == pytest.approx(wanted(step, name), abs=2e-5), (step, name)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_of_a_schedule(tmp_path: Path, name: str) -> None:
    options, wanted = SCHEDULES[name]
    same(moved(tmp_path, warmup_steps=0.2, **options), lambda step, _: wanted(step))


def test_rates_of_layers_phases_and_unfreezing_multiply(tmp_path: Path) -> None:
    options, schedule = SCHEDULES["infinite"]
    phases = [Phase(0.5, rates={"lm_head": 0.5}), Phase(1.0, rates={"layers.1": 0.25})]

    def wanted(step: int, name: str) -> float:
        # Three groups: the top layer, the one below at step 5, the rest at step 10.
        joins = {0: 0, 1: 0, 2: 5}.get(DEPTHS[name], 10)
        if step < joins:
            return 0.0
        factor = 0.8 ** DEPTHS[name] * schedule(step)
        if name == HEAD and step < 10:
            factor *= 0.5
        return factor * (0.25 if name == NAMES[3] and step >= 10 else 1)

    found = moved(
        tmp_path,
        phases,
        warmup_steps=4,
        layerwise_lr_decay=0.8,
        gradual_unfreezing={"groups": 3, "until": 0.5},
        **options,
    )
    same(found, wanted)


@given(
    total=st.integers(1, 200),
    warmup=st.integers(0, 250),
    cooldown=st.floats(0, 300),
    decay=st.floats(0, 300),
    constant=st.floats(0, 1),
)
def test_whatever_the_lengths(
    total: int, warmup: int, cooldown: float, decay: float, constant: float
) -> None:
    schedule = infinite(total, warmup=warmup, cooldown=cooldown, decay=decay, constant=constant, least=0.0)
    values = [schedule(step) for step in range(total + 2)]
    assert all(0 <= value <= 1 for value in values)
    assert values[total] == values[total + 1] == 0
    top = min(schedule.warmup, total)
    assert all(one >= other - 1e-12 for one, other in zip(values[top:], values[top + 1 :], strict=False))
    assert schedule.warmup + schedule.cooldown + schedule.decay <= total
