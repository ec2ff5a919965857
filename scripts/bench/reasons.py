"""What reasons in the training data are worth, and three ways to come by them, at equal tokens.

    python scripts/demo_models.py && python scripts/demo_reasons.py        # once
    python scripts/bench/reasons.py [--seeds 3] [--groups reasons orca r1 phi] [--json FILE]

The student is the demo's base, the task new sums of four digits, mod 10 (scripts/demo_reasons.py): the share
of right last digits, greedy. Every arm sees the same number of tokens, in about the same number of steps,
with the same schedule; an arm of two parts gives each half, and a schedule of its own. Where a file has fewer
tokens it is gone over more often. The seed decides the order of the data and the shuffling of reasons, and
nothing else: student and questions are the same. Everything is trained by the stage distill and kept in its
cache: a run that is stopped goes on where it was.

=========  ============================================================================================
reasons    the right steps and the answer; the answer alone; the steps of another question of that answer
orca       a strong teacher's few answers; a weak teacher's; first the weak one's, then the strong one's
r1         a weak teacher's traces, all of them; those whose answer is right
phi        what one finds; what of it is right; the same as text first, then as exercises
=========  ============================================================================================
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from report import mean, write

from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import Layout, read, rows_of
from evolve.stages.distill.generation import Generation, complete
from evolve.stages.distill.stage import DistillStage
from evolve.types import content_hash
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from evolve.weights.model import Model

TEMPLATE = "{reasoning}>{answer}"
LENGTH, BATCH, RATE = 128, 4, 5e-4


class Part(NamedTuple):
    """A text of an arm, and what is done with its reasons."""

    text: str
    mode: str = "inline"


ARMS: dict[str, dict[str, tuple[Part, ...]]] = {
    "reasons": {
        "with the reasons": (Part("sums"),),
        "answer alone": (Part("sums", "none"),),
        "reasons shuffled": (Part("sums", "shuffled"),),
    },
    "orca": {
        "strong teacher, 200 answers": (Part("few"),),
        "weak teacher": (Part("weak"),),
        "weak, then strong": (Part("weak"), Part("few")),
    },
    "r1": {
        "all traces": (Part("weak"),),
        "verified traces": (Part("verified"),),
    },
    "phi": {
        "as found": (Part("web"),),
        "textbook": (Part("textbook"),),
        "textbook, then exercises": (Part("textbook"), Part("exercises")),
    },
}


def block_of(part: Part, folder: Path, student: Model, tokens: int, seed: int) -> DistillBlock:
    """Return the stage that trains on a text for so many tokens."""
    path = folder / f"{part.text}.jsonl"
    plain: dict[str, Any] = {
        "model": "student",
        "dataset": {"path": str(path), "content": file_content(path), "max_length": LENGTH},
        "rationale": {"mode": part.mode, "template": TEMPLATE},
        "loss_functions": [{"function": "cross_entropy"}],
        "training_args": {
            "learning_rate": RATE,
            "per_device_train_batch_size": BATCH,
            "warmup_steps": 0.05,
            "adam_beta2": 0.98,
        },
    }
    block = DistillBlock.model_validate(plain)
    tokenizer = load_tokenizer(student.files, student.config)
    documents, _ = read(path, tokenizer, LENGTH, rationale=block.rationale, seed=seed)
    whole = rows_of(documents, Layout(LENGTH)).counts["tokens"]
    epochs = math.ceil(tokens / whole)
    plain["dataset"]["max_tokens"] = tokens // epochs
    plain["training_args"]["num_train_epochs"] = epochs
    return DistillBlock.model_validate(plain)


def trained(base: Model, parts: tuple[Part, ...], folder: Path, tokens: int, seed: int) -> Model:
    """Return the student after all parts of an arm."""
    model = base
    for part in parts:
        block = block_of(part, folder, model, tokens // len(parts), seed)
        before = model.content
        model = DistillStage.run(block, {"student": model}, seed=seed)
        plain = block.model_dump(exclude_none=True, exclude={"dataset": {"path"}})
        model = replace(model, content=content_hash({"before": before, "block": plain, "seed": seed}))
    return model


def score(model: Model, items: list[dict[str, str]]) -> float:
    """Return the share of questions at which the last digit of what the model writes is right."""
    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    prompts = [tuple(ids) for ids in tokenizer.encode([item["question"] for item in items])]
    written = complete(network, prompts, Generation(temperature=0.0, max_new_tokens=32), seed=0)
    right = 0
    for one, item in zip(written, items, strict=True):
        text = tokenizer.loaded.decode(one.tokens, skip_special_tokens=True)
        digits = [letter for letter in text if letter.isdigit()]
        right += digits[-1:] == [item["answer"]]
    return right / len(items)


def report(found: list[dict[str, Any]], start: float) -> str:
    """Return the table; an arm that two groups have stands in both."""
    lines = ["| group | arm | right | by seed |", "|---|---|---|---|", f"| | base | {start:.3f} | |"]
    for group, arms in ARMS.items():
        for arm in arms:
            values = [one["right"] for one in found if (one["group"], one["arm"]) == (group, arm)]
            if values:
                lines.append(
                    f"| {group} | {arm} | {mean(values)} | {' '.join(f'{value:.3f}' for value in values)} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("models/demo"))
    parser.add_argument("--data", type=Path, default=Path("models/demo_reasons"))
    parser.add_argument("--groups", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=300_000, help="of each arm")
    parser.add_argument("--items", type=int, default=1000, help="questions")
    parser.add_argument("--json", type=Path, help="all results, for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = options.data / "texts"
    lines = (options.data / "tasks/sums.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines][: options.items]
    base = replace(open_model(options.demo / "base"), content=content_of(options.demo / "base"))
    start = score(base, items)
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for group, arm in ((one, arm) for one in options.groups for arm in ARMS[one]):
            began = time.monotonic()
            right = score(trained(base, ARMS[group][arm], texts, options.tokens, seed), items)
            found.append({"group": group, "arm": arm, "seed": seed, "right": right})
            print(f"{group}, {arm}, seed {seed}: {right:.3f} ({time.monotonic() - began:.0f} s)", flush=True)
            document = {"tokens": options.tokens, "items": len(items), "base": start, "results": found}
            write(options.json, document, [])
    print(report(found, start))


if __name__ == "__main__":
    sys.exit(main())
