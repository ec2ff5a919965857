"""What a distill stage refuses before anything is built, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from evolve.stages.distill.stage import DistillStage
from tests.stages.distill.kit import block, models_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("own_cache")


def test_what_does_not_fit_is_refused(home: Path) -> None:
    models = models_of(home)
    other = {"kind": "hf", "model": "other"}
    found = DistillStage.check(block(home, teacher=other, loss_functions=[{"function": "hs_mse"}]), models)
    assert [path for path, _ in found] == ["teacher.model"]
    assert "insides of two models" in found[0][1]
    data = {"path": str(home / "data.jsonl"), "packing": False}
    found = DistillStage.check(block(home, teacher=other, seq_kd=True, dataset=data), models)
    assert [path for path, _ in found] == ["seq_kd"]
    assert DistillStage.check(block(home, teacher=other), models) == []
    entries = [{"function": "kl", "weight": 0.0}]
    assert any("all weights are 0" in text for _, text in block(home, loss_functions=entries).problems())
    assert any("give a teacher of kind hf" in text for _, text in block(home, teacher=None).problems())
    assert any("packing: false" in text for _, text in block(home, lmbda=0.5).problems())
    wrong = [{"function": "kl", "temperature": {"low": -1.0, "high": 2.0}}]
    assert any("above 0" in text for _, text in block(home, loss_functions=wrong).problems())
    good = [{"function": "cross_entropy"}, {"function": "kl", "weight": {"low": 0.0, "high": 4.0}}]
    assert block(home, loss_functions=good).problems() == []


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("generation.temperature", {"generation": {"temperature": -1}}),
        ("generation.top_p", {"generation": {"top_p": {"low": -0.5, "high": 1.0}}}),
        ("generation.top_p", {"generation": {"top_p": 0.0}}),
        ("generation.top_k", {"generation": {"top_k": -3}}),
        ("generation.max_new_tokens", {"generation": {"max_new_tokens": 0}}),
        ("frozen_res.1", {"frozen_res": ["norm", "("]}),
        ("training_args.adam_beta1", {"training_args": {"adam_beta1": 1.0}}),
        (
            "training_args.lr_scheduler_kwargs",
            {"training_args": {"lr_scheduler_type": "cosine_with_min_lr"}},
        ),
        (
            "training_args.lr_scheduler_kwargs.min_lr",
            {"training_args": {"lr_scheduler_kwargs": {"min_lr": 0.1}}},
        ),
        (
            "loss_functions.0.layer_mapping",
            {"loss_functions": [{"function": "attention_kl", "layer_mapping": [[0, 1]]}]},
        ),
        ("dataset.max_tokens", {"dataset": {"path": "data.jsonl", "max_tokens": {"choices": [1, 40]}}}),
        ("teacher.top_k", {"teacher": {"kind": "vllm", "model": "teacher", "top_k": 0}}),
        (
            "loss_functions.0.temperature",
            {
                "teacher": {"kind": "vllm", "model": "teacher"},
                "loss_functions": [{"function": "kl", "temperature": {"low": 1.0, "high": 2.0}}],
            },
        ),
        (
            "loss_functions.0.temperature",
            {
                "teacher": {"kind": "dataset", "path": "capture.json"},
                "loss_functions": [{"function": "kl", "temperature": {"low": 1.0, "high": 2.0}}],
            },
        ),
        (
            "loss_functions.1.temperature",
            {
                "teacher": {"kind": "dataset", "path": "capture.json"},
                "loss_functions": [{"function": "kl"}, {"function": "tvd", "temperature": 2.0}],
            },
        ),
    ],
)
def test_values_that_no_run_survives_are_problems(home: Path, place: str, changes: dict[str, Any]) -> None:
    assert block(home).problems() == []
    assert [".".join(map(str, path)) for path, _ in block(home, **changes).problems()] == [place]


@pytest.mark.parametrize(
    ("mapping", "student", "good"),
    [
        ("all", None, False),
        ("even", None, True),
        ([[1, 2]], None, True),
        ([[2, 2]], None, False),
        ([[1, 3]], None, False),
        ("all", {"keep_layers": [0]}, False),
    ],
)
def test_layers_that_a_model_does_not_have(home: Path, mapping: Any, student: Any, good: bool) -> None:
    loss = {"function": "hs_mse", "layer_mapping": mapping}
    found = DistillStage.check(block(home, student=student, loss_functions=[loss]), models_of(home))
    assert [path for path, _ in found] == ([] if good else ["loss_functions.0.layer_mapping"])
