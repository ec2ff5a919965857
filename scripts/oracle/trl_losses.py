"""Runs in TRL's own environment: its divergences on tensors from a file, with gradients.

    .venv-trl/bin/python scripts/oracle/trl_losses.py JOBS.json

Each job is ``{"tensors": IN.safetensors, "beta", "temperature", "num_items", "out": OUT.safetensors}``. With
``student_logits`` and ``teacher_logits`` (batch, length, V) and ``labels``, shifted already as TRL wants
them, it is GKDTrainer.generalized_jsd_loss; with ``student_hidden`` (n, width), ``student_weight`` and the
same of the teacher, the stable trainer's ChunkedDivergenceFunction, summed. The result has ``loss``, and
``grad.NAME`` for each of the student's tensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def generalized(tensors: dict[str, torch.Tensor], job: dict[str, float]) -> dict[str, torch.Tensor]:
    from trl.experimental.gkd import GKDTrainer

    logits = tensors["student_logits"].requires_grad_()
    loss = GKDTrainer.generalized_jsd_loss(
        logits,
        tensors["teacher_logits"],
        labels=tensors["labels"],
        beta=job["beta"],
        temperature=job["temperature"],
        num_items_in_batch=job["num_items"],
    )
    loss.backward()
    return {"loss": loss.detach(), "grad.student_logits": logits.grad}


def chunked(tensors: dict[str, torch.Tensor], job: dict[str, float]) -> dict[str, torch.Tensor]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden, weight = (tensors[f"student_{name}"].requires_grad_() for name in ("hidden", "weight"))
    divergence, _ = ChunkedDivergenceFunction.apply(
        hidden,
        weight,
        None,
        tensors["teacher_hidden"],
        tensors["teacher_weight"],
        None,
        job["beta"],
        job["temperature"],
    )
    loss = divergence.sum() / job["num_items"]
    loss.backward()
    return {"loss": loss.detach(), "grad.student_hidden": hidden.grad, "grad.student_weight": weight.grad}


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        tensors = load_file(job["tensors"])
        run = generalized if "student_logits" in tensors else chunked
        save_file({name: value.contiguous() for name, value in run(tensors, job).items()}, job["out"])


if __name__ == "__main__":
    main()
