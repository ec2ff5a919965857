"""One side of a training with a teacher, step by step, in a process of its own. Run by distill.py.

    python scripts/bench/one_distill.py JOB.json ours|trl

Every ``pause`` steps it prints a line of JSON (what the steps took) and waits for a line on its input, so
that two sides can take turns on one machine. The first line comes after ``warmup`` steps and has the losses
of the first steps; the last one has the peak of memory.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

MIB = 2**20


def status(key: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


class Turns(TrainerCallback):  # type: ignore[misc]
    """Takes turns with the other side, and measures what stands between."""

    def __init__(self, job: dict[str, Any], before: int) -> None:
        self._job, self._before = job, before
        self._losses: list[float] = []
        self._wall = self._cpu = 0.0

    def see(self, loss: Any) -> None:
        """Note the loss of a step, as the trainer gets it."""
        if len(self._losses) < self._job["warmup"]:
            self._losses.append(float(loss.detach()))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        since = state.global_step - self._job["warmup"]
        if since < 0 or since % self._job["pause"]:
            return
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        if since == 0:
            self._say(losses=self._losses)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        elif state.global_step < state.max_steps:
            self._say(wall=wall, cpu=cpu)
        else:
            peak = (status("VmHWM") - self._before) / MIB
            print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak}), flush=True)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _say(self, **line: Any) -> None:
        print(json.dumps(line), flush=True)
        sys.stdin.readline()


def ours(job: dict[str, Any]) -> None:
    """Train as the stage distill does."""
    import numpy as np

    from evolve.stages.distill.forward import head_rule
    from evolve.stages.distill.generation import Generation
    from evolve.stages.distill.learner import Learner, Writing
    from evolve.stages.distill.teachers.base import Opening
    from evolve.stages.distill.teachers.hf import HfTeacher, HfTeacherBlock
    from evolve.stages.distill.terms import make_terms
    from evolve.training.arguments import TrainingArgs
    from evolve.training.loop import make_trainer, quiet
    from evolve.training.network import open_trainee
    from evolve.training.rows import Row
    from evolve.training.trainer import Settings
    from evolve.weights.reader import open_model
    from evolve.weights.tokenizer import load_tokenizer

    before = baseline()
    student, teacher = open_model(Path(job["student"])), open_model(Path(job["teacher"]))
    tokenizer = load_tokenizer(student.files, student.config)
    trainee = open_trainee(student)
    opening = Opening(
        teacher, tokenizer, temperature=1.0, device="cpu", threads=job["threads"], max_length=job["length"]
    )
    turns = Turns(job, before)

    class Seen(Learner):
        def loss(self, network: Any, rows: Any, *, num_items: int) -> Any:
            found = super().loss(network, rows, num_items=num_items)
            turns.see(found[0])
            return found

    learner = Seen(
        make_terms([{"function": job["function"]}]),
        HfTeacher(HfTeacherBlock(kind="hf", model="teacher"), opening),
        head_rule(trainee.network),
        job["vocabulary"],
        Writing(0.0, False, Generation(), job["length"], 0),
    )
    arguments = TrainingArgs(
        learning_rate=job["rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        per_device_train_batch_size=job["batch"],
    )
    settings = Settings(arguments, 0, Path(job["folder"]) / "ours", save_seconds=math.inf)
    rows = [
        Row(np.array(tokens, np.int32), np.array([-100, *tokens[1:]], np.int32), (len(tokens),))
        for tokens in job["rows"]
    ]
    trainer = make_trainer(trainee.network, rows, learner, settings, spent=0.0)
    trainer.add_callback(turns)
    with quiet():
        trainer.train()


def trl(job: dict[str, Any]) -> None:
    """Train with TRL's GKDTrainer on the data alone (lambda 0)."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    before = baseline()
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(job[side], dtype=torch.float32)
        for side in ("student", "teacher")
    )

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        inputs = torch.zeros((len(rows), longest), dtype=torch.long)
        mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, -100)
        for place, row in enumerate(rows):
            tokens = torch.tensor(row["input_ids"])
            inputs[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
            labels[place, 1 : len(tokens)] = tokens[1:]
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}

    turns = Turns(job, before)

    class InOrder(GKDTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            found = super().compute_loss(*given, **more)
            turns.see(found[0] if isinstance(found, tuple) else found)
            return found

    steps = len(job["rows"]) // job["batch"]
    config = GKDConfig(
        output_dir=str(Path(job["folder"]) / "trl"),
        lmbda=0.0,
        beta={"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}[job["function"]],
        max_steps=steps,
        learning_rate=job["rate"],
        lr_scheduler_type="constant",
        per_device_train_batch_size=job["batch"],
        max_length=job["length"],
        logging_steps=max(1, steps // 50),
        optim="adamw_torch",
        weight_decay=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=student,
        teacher_model=teacher,
        args=config,
        data_collator=collate,
        train_dataset=Dataset.from_dict({"input_ids": job["rows"]}),
        processing_class=AutoTokenizer.from_pretrained(job["student"]),
        callbacks=[turns],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    trainer.train()


def baseline() -> int:
    """Return the memory of the process before a model is there, its libraries loaded."""
    gc.collect()
    return status("VmRSS")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    {"ours": ours, "trl": trl}[sys.argv[2]](job)


if __name__ == "__main__":
    main()
