"""Which loss brings a student nearest its teacher at equal tokens: hard labels, KLs, JSD, on-policy, states.

    python scripts/demo_models.py        # once
    python scripts/bench/loss_choice.py [--seeds 3] [--arms hard_labels kl ...] [--json FILE]

The student is the demo's base (0.8 M parameters), the teacher a Llama of 3.4 M parameters that has seen the
towns of the demo twelve times, by the stage distill from random weights. Every arm trains the student on the
same number of tokens in the same batches; on-policy, the student writes half of them itself, behind the first
quarter of a text. Measured on the ways of stating a fact that no training uses: the KL to the teacher at
temperature 1 in nats a token, whether both have the same most likely token, and the accuracy on the task
demo_towns. Recovered is the share of the way from student to teacher in accuracy. A seed decides the order of
the data and what is written. All is trained by the stage distill and kept in its cache: a run that is stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report import mean, write

from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import read
from evolve.stages.distill.forward import forward
from evolve.stages.distill.measure import kl_to
from evolve.stages.distill.stage import DistillStage
from evolve.stages.distill.teachers.base import batch_of
from evolve.training.rows import IGNORED, Row
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from evolve.weights.model import Model

LENGTH, BATCH = 48, 32
MEASURES = ("kl", "agreement", "accuracy")
ARMS: dict[str, dict[str, Any]] = {
    "hard_labels": {"loss_functions": [{"function": "cross_entropy"}]},
    "kl": {"loss_functions": [{"function": "kl"}]},
    "reverse_kl": {"loss_functions": [{"function": "reverse_kl"}]},
    "jsd": {"loss_functions": [{"function": "jsd"}]},
    "on_policy": {"loss_functions": [{"function": "reverse_kl"}], "lmbda": 0.5},
    "hidden": {"loss_functions": [{"function": "kl"}, {"function": "hs_cosine"}]},
}


def data(path: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(path), "content": file_content(path), "max_length": LENGTH, "packing": False, **more}


def arguments(rate: float, epochs: int = 1) -> dict[str, Any]:
    return {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "warmup_steps": 0.05,
    }


def make_teacher(folder: Path, demo: Path, epochs: int) -> Model:
    """Return the teacher: several times the student's size, trained long on the towns."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(demo / "base")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        tokenizer.save_pretrained(folder)
        LlamaForCausalLM(config).save_pretrained(folder)
    start = replace(open_model(folder), content=content_of(folder))
    block = DistillBlock.model_validate(
        {
            "model": "start",
            "dataset": data(demo / "texts/towns.jsonl"),
            "loss_functions": [{"function": "cross_entropy"}],
            "training_args": arguments(1e-3, epochs),
        }
    )
    return replace(DistillStage.run(block, {"start": start}, seed=0), content=f"{start.content}-{epochs}")


def student_of(arm: str, models: dict[str, Model], demo: Path, tokens: int, seed: int) -> Model:
    """Return the student after an arm's training."""
    more = ARMS[arm]
    taught = any(one["function"] != "cross_entropy" for one in more["loss_functions"])
    block = DistillBlock.model_validate(
        {
            "model": "student",
            "dataset": data(demo / "texts/towns.jsonl", max_tokens=tokens),
            "training_args": arguments(1e-3),
            "generation": {"max_new_tokens": 12},
            **({"teacher": {"kind": "hf", "model": "teacher"}} if taught else {}),
            **more,
        }
    )
    return DistillStage.run(block, models if taught else {"student": models["student"]}, seed=seed)


def distance(student: Any, teacher: Any, rows: list[Row], vocabulary: int) -> dict[str, float]:
    """Return the mean KL to the teacher, and how often both have the same most likely token."""
    nats = same = count = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            batch = batch_of(some)
            labels = np.full(batch.shape, IGNORED, np.int64)
            for place, row in enumerate(some):
                labels[place, : len(row)] = row.labels
            theirs, ours = (forward(one, batch, rule=None) for one in (teacher, student))
            found = kl_to(theirs, ours, torch.from_numpy(labels), vocabulary=vocabulary)
            nats += float(found.kl.sum())
            same += float(found.agrees.sum())
            count += len(found.kl)
    return {"kl": nats / count, "agreement": same / count}


def accuracy(network: Any, tokenizer: Any, items: list[dict[str, Any]]) -> float:
    """Return the share of questions whose right answer is the likeliest of the four."""
    return sum(answered(network, tokenizer, items)) / len(items)


def answered(network: Any, tokenizer: Any, items: list[dict[str, Any]]) -> list[bool]:
    """Return for each question whether its right answer is the likeliest of the four."""
    found = []
    for item in items:
        texts = [f"{item['question']} {choice}" for choice in item["choices"]]
        first = len(tokenizer.encode([item["question"]])[0])
        ids = tokenizer.encode(texts)
        width = max(map(len, ids))
        inputs = torch.tensor([[*one, *[0] * (width - len(one))] for one in ids])
        with torch.no_grad():
            log_q = network(input_ids=inputs).logits.log_softmax(-1)
        scores = [
            sum(float(log_q[place, at - 1, one[at]]) for at in range(first, len(one)))
            for place, one in enumerate(ids)
        ]
        found.append(scores.index(max(scores)) == item["answer"])
    return found


class Yardstick:
    """What every student is held against."""

    def __init__(self, teacher: Model, demo: Path, items: int) -> None:
        self.teacher, _ = open_network(teacher)
        self.tokenizer = load_tokenizer(teacher.files, teacher.config)
        documents, _ = read(demo / "texts/towns_heldout.jsonl", self.tokenizer, LENGTH)
        self.rows = [
            Row(np.array(one.tokens, np.int32), np.array(one.labels, np.int32), (len(one.tokens),))
            for one in documents
        ]
        lines = (demo / "tasks/towns.jsonl").read_text(encoding="utf-8").splitlines()
        self.items = [json.loads(line) for line in lines][:items]

    def measure(self, model: Model) -> dict[str, float]:
        network, _ = open_network(model)
        found = distance(network, self.teacher, self.rows, self.tokenizer.size)
        return {**found, "accuracy": accuracy(network, self.tokenizer, self.items)}


def report(found: list[dict[str, Any]], before: dict[str, float], teacher: dict[str, float]) -> str:
    """Return the table with 95 % intervals over seeds."""
    lines = [f"| arm | {' | '.join(MEASURES)} | recovered |", "|---|---|---|---|---|"]
    for name, values in (("student before", before), ("teacher", teacher)):
        lines.append(f"| {name} | {' | '.join(f'{values[key]:.3f}' for key in MEASURES)} | |")
    way = teacher["accuracy"] - before["accuracy"]
    for arm in dict.fromkeys(one["arm"] for one in found):
        some = [one for one in found if one["arm"] == arm]
        cells = [mean([one[key] for one in some]) for key in MEASURES]
        gained = "n/a" if way <= 0 else mean([(one["accuracy"] - before["accuracy"]) / way for one in some])
        lines.append(f"| {arm} | {' | '.join(cells)} | {gained} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("models/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/loss_choice"), help="the teacher's start")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=36_000, help="of each arm")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--items", type=int, default=700, help="questions of the task")
    parser.add_argument("--json", type=Path, help="all results, for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = make_teacher(options.out / "start", options.demo, options.teacher_epochs)
    student = replace(open_model(options.demo / "base"), content=content_of(options.demo / "base"))
    models = {"student": student, "teacher": teacher}
    yard = Yardstick(teacher, options.demo, options.items)
    before, top = yard.measure(student), yard.measure(teacher)
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for arm in options.arms:
            began = time.monotonic()
            model = student_of(arm, models, options.demo, options.tokens, seed)
            found.append({"arm": arm, "seed": seed, **yard.measure(model)})
            words = " ".join(f"{key} {found[-1][key]:.3f}" for key in MEASURES)
            print(f"{arm}, seed {seed}: {words} ({time.monotonic() - began:.0f} s)", flush=True)
            document = {"tokens": options.tokens, "before": before, "teacher": top, "results": found}
            write(options.json, document, [])
    print(report(found, before, top))


if __name__ == "__main__":
    sys.exit(main())
