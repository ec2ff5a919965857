"""Which loss brings a student nearest its teacher at equal tokens: hard labels, KLs, JSD, on-policy, states.

    python scripts/demo_models.py        # once
    python scripts/bench/loss_choice.py [--seeds 3] [--arms hard_labels kl ...] [--temperatures] [--json FILE]

The student is the demo's base (0.8 M parameters), the teacher a Llama of 3.4 M parameters that has seen the
towns of the demo twelve times, by the stage distill from random weights. Every arm trains the student on the
same number of tokens in the same batches; on-policy, the student writes half of them itself, behind the first
quarter of a text. What it writes is longer or shorter than the text that it stands for, so `on_policy_equal`
gets as many rows as make the tokens of the student equal; how many it was given is counted.

Measured on the ways of stating a fact that no training uses: the KL to the teacher at temperature 1 and the
loss, in nats a token; whether both have the same most likely token; the accuracy on the task demo_towns,
beside chance. `third` is the loss of a text that neither the teacher nor any arm trains on, the demo's
elixirs; the student's start half knows them, so it shows what is lost. Recovered is the share of the way from
student to teacher in accuracy. More tables: differences to hard labels within a seed; what a second of
training brought, since equal tokens are not equal time; with --temperatures the KL at other temperatures
beside the teacher's entropy there. A seed decides the order of the data and what is written. All is trained
by the stage distill and kept in its cache: a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from report import mean, write
from students import accuracy, chance, distance, entropy, nll, rows_of_text, spent

from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import prompts_of
from evolve.stages.distill.generation import Generation, student_rollouts
from evolve.stages.distill.learner import Learner
from evolve.stages.distill.stage import DistillStage
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.weights.model import Model

LENGTH, BATCH = 48, 32
WRITES = {"max_new_tokens": 12}
MEASURES = ("kl", "agreement", "nll", "third", "accuracy")
ARMS: dict[str, dict[str, Any]] = {
    "hard_labels": {"loss_functions": [{"function": "cross_entropy"}]},
    "kl": {"loss_functions": [{"function": "kl"}]},
    "reverse_kl": {"loss_functions": [{"function": "reverse_kl"}]},
    "jsd": {"loss_functions": [{"function": "jsd"}]},
    "on_policy": {"loss_functions": [{"function": "reverse_kl"}], "lmbda": 0.5},
    "hidden": {"loss_functions": [{"function": "kl"}, {"function": "hs_cosine"}]},
    "on_policy_equal": {"loss_functions": [{"function": "reverse_kl"}], "lmbda": 0.5},
}
TEMPERATURES = (0.5, 2.0, 4.0)


def warmed(temperature: float) -> str:
    """Return the name of the arm with the KL at a temperature; 1 is `kl`."""
    return "kl" if temperature == 1 else f"kl_T{temperature:g}"


def plan_of(arm: str) -> dict[str, Any]:
    """Return what an arm adds to the block."""
    if arm.startswith("kl_T"):
        return {"loss_functions": [{"function": "kl", "temperature": float(arm.removeprefix("kl_T"))}]}
    return ARMS[arm]


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
    more = plan_of(arm)
    taught = any(one["function"] != "cross_entropy" for one in more["loss_functions"])
    block = DistillBlock.model_validate(
        {
            "model": "student",
            "dataset": data(demo / "texts/towns.jsonl", max_tokens=tokens),
            "training_args": arguments(1e-3),
            "generation": WRITES,
            **({"teacher": {"kind": "hf", "model": "teacher"}} if taught else {}),
            **more,
        }
    )
    return DistillStage.run(block, models if taught else {"student": models["student"]}, seed=seed)


@dataclass
class Count:
    """What a training was given: steps, and tokens with those that the student wrote."""

    steps: int = 0
    tokens: int = 0


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count what the trainings inside are given. One that was found in the cache is given nothing."""
    found = Count()
    plain = Learner.prepare

    def prepare(self: Learner, network: Any, rows: Any, *, step: int) -> Any:
        given = plain(self, network, rows, step=step)
        found.steps += 1
        found.tokens += sum(map(len, given))
        return given

    with mock.patch.object(Learner, "prepare", prepare):
        yield found


def seen(model: Model, arm: str, counted: Count, folder: Path) -> int | None:
    """Return the tokens that an arm's student was given; None: it wrote some, and nobody counted.

    Counts are kept beside the teacher's start, since a training that is kept is not done again.
    """
    took = spent(model)
    if "lmbda" not in plan_of(arm):
        return took.tokens
    file = folder / "tokens" / f"{model.content.removeprefix('stage:')}.json"
    if counted.steps == took.steps:  # fewer: it went on after a kill
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(counted.tokens))
    return int(json.loads(file.read_text())) if file.exists() else None


def equal_tokens(student: Model, demo: Path, tokens: int) -> int:
    """Return the tokens of text with which an on-policy arm's student is given ``tokens``.

    Half of the rows are the student's: as long as the start writes them.
    """
    network, _ = open_network(student)
    tokenizer = load_tokenizer(student.files, student.config)
    rows = rows_of_text(demo / "texts/towns.jsonl", tokenizer, LENGTH, most=8000)
    prompts = [prompt[: LENGTH - 1] for prompt in prompts_of(rows)]
    written = student_rollouts(network, prompts, Generation(**WRITES), seed=0, room=LENGTH)
    longer = sum(map(len, written)) / sum(map(len, rows))
    return round(tokens / (0.5 + 0.5 * longer))


class Yardstick:
    """What every student is held against."""

    def __init__(self, teacher: Model, demo: Path, items: int) -> None:
        self.teacher, _ = open_network(teacher)
        self.tokenizer = load_tokenizer(teacher.files, teacher.config)
        self.rows, self.third = (
            rows_of_text(demo / f"texts/{name}_heldout.jsonl", self.tokenizer, LENGTH)
            for name in ("towns", "elixirs")
        )
        lines = (demo / "tasks/towns.jsonl").read_text(encoding="utf-8").splitlines()
        self.items = [json.loads(line) for line in lines][:items]

    def measure(self, model: Model) -> dict[str, float]:
        network, _ = open_network(model)
        size = self.tokenizer.size
        return {
            **distance(network, self.teacher, self.rows, size),
            "nll": nll(network, self.rows, size),
            "third": nll(network, self.third, size),
            "accuracy": accuracy(network, self.tokenizer, self.items),
        }


def by_arm(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each arm, in the order of the seeds."""
    arms = dict.fromkeys(one["arm"] for one in found)
    return {arm: [one for one in found if one["arm"] == arm] for arm in arms}


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    return [row(*cells), "|---" * len(cells) + "|"]


def report(found: list[dict[str, Any]], ends: dict[str, dict[str, float]], chance: float) -> str:
    """Return the table at equal tokens, with 95 % intervals over seeds."""
    lines = head("arm", *MEASURES, "recovered", "tokens of the student")
    for name, values in ends.items():
        lines.append(row(name, *(f"{values[key]:.3f}" for key in MEASURES), "", ""))
    lines.append(row("chance", *[""] * (len(MEASURES) - 1), f"{chance:.3f}", "", ""))
    before, teacher = ends["student before"]["accuracy"], ends["teacher"]["accuracy"]
    for arm, some in by_arm(found).items():
        cells = [mean([one[key] for one in some]) for key in MEASURES]
        gains = [(one["accuracy"] - before) / (teacher - before) for one in some] if teacher > before else []
        counts = [one["tokens"] for one in some if one["tokens"] is not None]
        tokens = f"{sum(counts) / len(counts):.0f}" if len(counts) == len(some) else "not counted"
        lines.append(row(arm, *cells, mean(gains) if gains else "n/a", tokens))
    return "\n".join(lines)


def differences(found: list[dict[str, Any]]) -> str:
    """Return each arm minus hard labels, paired by seed, with 95 % intervals (Student's t)."""
    arms = by_arm(found)
    labels = {one["seed"]: one for one in arms.get("hard_labels", [])}
    lines = head("minus hard labels", *MEASURES)
    for arm, some in arms.items():
        pairs = [(one, labels[one["seed"]]) for one in some if one["seed"] in labels]
        if arm != "hard_labels" and pairs:
            lines.append(row(arm, *(mean([one[key] - two[key] for one, two in pairs]) for key in MEASURES)))
    return "\n".join(lines)


def by_time(found: list[dict[str, Any]], before: dict[str, float]) -> str:
    """Return what a second of training brought: tokens, and the KL to the teacher that it took away."""
    lines = head("arm", "seconds of training", "tokens a second", "KL taken away in 100 s")
    for arm, some in by_arm(found).items():
        seconds = mean([one["seconds"] for one in some])
        # What the student wrote counts where it was counted; else the text that it stood for.
        speed = mean([(one["tokens"] or one["text_tokens"]) / one["seconds"] for one in some])
        nearer = mean([100 * (before["kl"] - one["kl"]) / one["seconds"] for one in some])
        lines.append(row(arm, seconds, speed, nearer))
    return "\n".join(lines)


def warmth(found: list[dict[str, Any]], entropies: dict[float, float]) -> str:
    """Return the KL's arms by temperature, beside the teacher's entropy there."""
    arms = by_arm(found)
    lines = head("temperature", "the teacher's entropy, nats", "kl", "agreement", "accuracy")
    for temperature, nats in sorted(entropies.items()):
        if some := arms.get(warmed(temperature)):
            cells = [mean([one[key] for one in some]) for key in ("kl", "agreement", "accuracy")]
            lines.append(row(f"{temperature:g}", f"{nats:.3f}", *cells))
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
    parser.add_argument(
        "--temperatures", type=float, nargs="*", help=f"of the KL, besides 1; without any: {TEMPERATURES}"
    )
    parser.add_argument("--json", type=Path, help="all results, for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = make_teacher(options.out / "start", options.demo, options.teacher_epochs)
    student = replace(open_model(options.demo / "base"), content=content_of(options.demo / "base"))
    models = {"student": student, "teacher": teacher}
    yard = Yardstick(teacher, options.demo, options.items)
    ends = {"student before": yard.measure(student), "teacher": yard.measure(teacher)}
    warm = [] if options.temperatures is None else [1.0, *(options.temperatures or TEMPERATURES)]
    entropies = {one: entropy(yard.teacher, yard.rows, yard.tokenizer.size, one) for one in warm}
    document = {
        "tokens": options.tokens,
        "before": ends["student before"],
        "teacher": ends["teacher"],
        "chance": chance(yard.items),
        "entropies": {f"{key:g}": value for key, value in entropies.items()},
        "results": [],
    }
    for seed in range(options.seeds):
        for arm in dict.fromkeys([*options.arms, *map(warmed, warm)]):
            one = result(arm, seed, models, yard, options)
            document["results"].append(one)
            words = " ".join(f"{key} {one[key]:.3f}" for key in MEASURES)
            print(f"{arm}, seed {seed}: {words} ({one['seconds']:.0f} s of training)", flush=True)
            write(options.json, document, [])
    found = document["results"]
    tables = [
        report(found, ends, document["chance"]),
        differences(found),
        by_time(found, ends["student before"]),
    ]
    print("\n\n".join([*tables, *([warmth(found, entropies)] if warm else [])]))


def result(
    arm: str, seed: int, models: dict[str, Model], yard: Yardstick, options: argparse.Namespace
) -> dict[str, Any]:
    """Return what is said of an arm's student of a seed, trained now or found in the cache."""
    tokens = options.tokens
    if arm == "on_policy_equal":
        tokens = equal_tokens(models["student"], options.demo, tokens)
    began = time.monotonic()
    with counting() as counted:
        model = student_of(arm, models, options.demo, tokens, seed)
    took = spent(model)
    return {
        "arm": arm,
        "seed": seed,
        **yard.measure(model),
        "tokens": seen(model, arm, counted, options.out),
        "text_tokens": took.tokens,
        "seconds": took.seconds,
        "seconds_now": time.monotonic() - began,
    }


if __name__ == "__main__":
    sys.exit(main())
