"""Models and blocks of the distill stage for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.stage import DistillStage
from evolve.stages.kept import log_of
from evolve.weights.content import content_of
from evolve.weights.reader import open_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model


def models_of(home: Path) -> dict[str, Model]:
    from dataclasses import replace

    names = ("student", "teacher", "other")
    return {
        name: replace(open_model(str(home / name)), content=content_of(str(home / name))) for name in names
    }


def shown(made: Model) -> dict[str, Any]:
    """Return what stands beside a trained model: counts, steps, loss curve."""
    path = log_of(made)
    assert path is not None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def block(home: Path, **changes: Any) -> DistillBlock:
    plain = {
        "model": "student",
        "teacher": {"kind": "hf", "model": "teacher"},
        "dataset": {"path": str(home / "data.jsonl"), "max_length": 48},
        "loss_functions": [{"function": "kl", "weight": 1.0}],
        "training_args": {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "warmup_steps": 0},
    }
    return DistillBlock.model_validate({**plain, **changes})


def run(home: Path, *, seed: int = 0, **changes: Any) -> Model:
    return DistillStage.run(block(home, **changes), models_of(home), seed=seed)


def tensors(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.tensors()}


def same(one: Model, other: Model) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
