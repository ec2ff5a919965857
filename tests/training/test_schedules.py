"""The table of schedules against transformers itself."""

from __future__ import annotations

import inspect

from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from evolve.training.schedules import KEYS, schedule_problems

FILLED_IN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def test_every_schedule_takes_the_keys_of_the_table() -> None:
    functions = {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    for name, known in KEYS.items():
        assert set(known) == inspect.signature(functions[name]).parameters.keys() - FILLED_IN


def test_what_a_schedule_cannot_be_made_with() -> None:
    def keys(name: str, **options: float | int | str) -> list[str]:
        return [key for key, _ in schedule_problems(name, options)]

    assert keys("cosine", num_cycles=0.5) == keys("cosine_with_min_lr", min_lr_rate=0.1) == []
    assert keys("cosine_with_min_lr") == keys("cosine_with_min_lr", min_lr=0.1, min_lr_rate=0.1) == [""]
    assert keys("constant_with_warmup", power=2) == ["power"]
    assert keys("polynomial", power="2") == ["power"]
    assert keys("warmup_stable_decay", warmup_type="linear", decay_type="steep") == ["decay_type"]
