"""What ``training_args`` refuse, and what of them has no effect."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evolve.config.plain import plain, ranges
from evolve.training.arguments import TrainingArgs

INFINITE: dict[str, Any] = {
    "lr_scheduler_type": "infinite",
    "lr_scheduler_kwargs": {
        "num_cooldown_steps": {"low": 0.1, "high": 0.6},
        "constant_lr_ratio": {"low": 0.1, "high": 0.9},
        "num_decay_steps": {"low": 0.05, "high": 0.3},
        "min_lr_ratio": {"low": 0.0, "high": 0.1},
        "decay_type": "1-sqrt",
    },
    "layerwise_lr_decay": {"low": 0.6, "high": 1.0},
    "gradual_unfreezing": {"groups": {"choices": [1, 2, 4]}, "until": {"low": 0.0, "high": 0.6}},
}


def test_every_number_may_be_a_range() -> None:
    arguments = TrainingArgs.model_validate(INFINITE)
    assert list(arguments.problems()) == []
    assert [".".join(map(str, path)) for path, _ in ranges(arguments)] == [
        "lr_scheduler_kwargs.num_cooldown_steps",
        "lr_scheduler_kwargs.constant_lr_ratio",
        "lr_scheduler_kwargs.num_decay_steps",
        "lr_scheduler_kwargs.min_lr_ratio",
        "layerwise_lr_decay",
        "gradual_unfreezing.groups",
        "gradual_unfreezing.until",
    ]
    assert TrainingArgs.model_validate(plain(arguments)) == arguments


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"layerwise_lr_decay": 0.0}, "layerwise_lr_decay", "must be above 0"),
        ({"layerwise_lr_decay": {"low": 0.5, "high": 1.2}}, "layerwise_lr_decay", "at most 1, got 1.2"),
        ({"gradual_unfreezing": {"groups": 0}}, "gradual_unfreezing.groups", "at least 1"),
        ({"gradual_unfreezing": {"until": 1.5}}, "gradual_unfreezing.until", "at most 1"),
        (
            {"lr_scheduler_kwargs": {"num_decay_steps": 0.1}},
            "lr_scheduler_kwargs.num_decay_steps",
            "'num_decay_steps' is no key of the schedule cosine: it has num_cycles",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"power": 2}},
            "lr_scheduler_kwargs.power",
            "it has no keys",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs", "one of min_lr and min_lr_rate"),
        (
            {
                "lr_scheduler_type": "polynomial",
                "lr_scheduler_kwargs": {"lr_end": {"low": 0, "high": 1e-4}},
                "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            },
            "lr_scheduler_kwargs",
            "must be below learning_rate",
        ),
        (
            {**INFINITE, "lr_scheduler_kwargs": {"num_cooldown_steps": {"low": 0.1, "high": 0.95}}},
            "lr_scheduler_kwargs",
            "more than all steps",
        ),
        (
            {**INFINITE, "lr_scheduler_kwargs": {"constant_lr_ratio": 1.5}},
            "lr_scheduler_kwargs.constant_lr_ratio",
            "at most 1",
        ),
    ],
)
def test_problems(changes: dict[str, Any], path: str, message: str) -> None:
    found = {".".join(one): text for one, text in TrainingArgs.model_validate(changes).problems()}
    assert message in found[path]


def test_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="min_lr_ratioo"):
        TrainingArgs.model_validate({"lr_scheduler_kwargs": {"min_lr_ratioo": 0.1}})


@pytest.mark.parametrize(
    ("block", "kept"), [({"groups": 1}, False), ({"until": 0}, False), ({}, True), ({"until": 0.2}, True)]
)
def test_an_unfreezing_that_freezes_nothing_is_dropped(block: dict[str, Any], kept: bool) -> None:
    found = TrainingArgs.effective({"learning_rate": 1e-3, "gradual_unfreezing": block})
    assert ("gradual_unfreezing" in found) == kept
