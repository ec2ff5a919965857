"""TRL 1.16 in an environment of its own, on the same tensors: loss and gradient."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Head
from tests.stages.distill.batches import logits_loss, make_batch, make_head

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("TRL_VENV", ROOT / ".venv-trl")) / "bin" / "python"
# TRL takes the ends of beta for the two directions of the KL, and has no factor T².
FUNCTIONS: dict[float, dict[str, Any]] = {
    0.0: {"function": "kl"},
    1.0: {"function": "reverse_kl"},
    0.1: {"function": "jsd", "beta": 0.1},
    0.5: {"function": "jsd", "beta": 0.5},
    0.9: {"function": "jsd", "beta": 0.9},
}
TEMPERATURES = (0.7, 1.0, 3.0)


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    script = ROOT / "scripts" / "oracle" / "trl_env.sh"
    try:
        done = subprocess.run([script], capture_output=True, text=True, timeout=1200, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(str(error))
    if done.returncode != 0:
        pytest.skip(f"scripts/oracle/trl_env.sh failed: {done.stderr.strip()[-400:]}")


def theirs(jobs: list[dict[str, Any]], tensors: dict[str, Tensor], folder: Path) -> list[dict[str, Tensor]]:
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()}, folder / "in.safetensors"
    )
    for number, job in enumerate(jobs):
        job |= {"tensors": str(folder / "in.safetensors"), "out": str(folder / f"{number}.safetensors")}
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    script = ROOT / "scripts" / "oracle" / "trl_losses.py"
    command = [PYTHON, script, folder / "jobs.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(job["out"]) for job in jobs]


def all_jobs(num_items: int) -> list[dict[str, Any]]:
    return [
        {"beta": beta, "temperature": temperature, "num_items": num_items}
        for beta in FUNCTIONS
        for temperature in TEMPERATURES
    ]


def test_the_generalized_jsd_of_gkd(tmp_path: Path) -> None:
    batch = make_batch(size=(3, 9), vocabulary=200, ignored=0.4)
    jobs = all_jobs(batch.items + 5)
    tensors = {
        "student_logits": batch.student[:, :-1].float(),
        "teacher_logits": batch.teacher[:, :-1].float(),
        "labels": batch.labels[:, 1:],
    }
    for job, peer in zip(jobs, theirs(jobs, tensors, tmp_path), strict=True):
        function = {**FUNCTIONS[job["beta"]], "temperature": job["temperature"]}
        found, gradient = logits_loss([function], batch, num_items=job["num_items"])
        factor = job["temperature"] ** 2
        assert found.total.item() == pytest.approx(factor * peer["loss"].item(), rel=1e-5)
        expected = factor * peer["grad.student_logits"]
        assert not gradient[:, -1].any()
        torch.testing.assert_close(gradient[:, :-1], expected, rtol=1e-4, atol=1e-6 * factor)


def test_the_chunked_divergence_of_the_stable_trainer(tmp_path: Path) -> None:
    size, vocabulary = (2, 7), 300
    student, teacher = (make_head(seed, size, vocabulary, width=8, bias=False) for seed in (1, 2))
    labels = torch.zeros(size, dtype=torch.int64)
    labels[0, 1:4] = -100
    rows = torch.tensor([row for row in range(14) if row not in (0, 1, 2, 6, 13)])
    jobs = all_jobs(11)
    tensors = {
        "student_hidden": student.hidden.flatten(0, 1)[rows],
        "student_weight": student.weight,
        "teacher_hidden": teacher.hidden.flatten(0, 1)[rows],
        "teacher_weight": teacher.weight,
    }
    for job, peer in zip(jobs, theirs(jobs, tensors, tmp_path), strict=True):
        function = {**FUNCTIONS[job["beta"]], "temperature": job["temperature"]}
        fresh = Head(*(tensor.detach().clone().requires_grad_() for tensor in student.tensors))
        found = distillation_loss(
            make_terms([function]), Signals(fresh), Signals(teacher), labels, num_items=11, chunk=4
        )
        found.total.backward()
        assert fresh.hidden.grad is not None
        assert fresh.weight.grad is not None
        factor = job["temperature"] ** 2
        assert found.total.item() == pytest.approx(factor * peer["loss"].item(), rel=1e-5)
        for ours, name in ((fresh.hidden.grad.flatten(0, 1)[rows], "hidden"), (fresh.weight.grad, "weight")):
            expected = factor * peer[f"grad.student_{name}"]
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-6 * factor)
