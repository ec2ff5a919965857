"""Make the data of the case studies of distillation: sums of four digits, with the steps to their last digit.

    python scripts/demo_models.py        # the student is the demo's base
    python scripts/demo_reasons.py [--out models/demo_reasons] [--demo models/demo] [--seed 0]

A question is `7+3+8+5=`, its reasons are `7+3=0 0+8=8 8+5=3` (the last digit alone is carried on), its
answer is `3`. 6,000 of the 10,000 sums are for training, 2,000 others are the task `demo_sums`. A question
that is new can be answered by its steps, and hardly at a glance.

========================  ==================================================================================
texts/sums.jsonl          the right steps of every question for training: a strong teacher
texts/few.jsonl           200 of them: a strong teacher is dear
texts/weak.jsonl          what a weak teacher writes to 3,000 questions, once each, right or wrong
texts/verified.jsonl      R1: what it writes to the same in 4 tries; the shortest right one is kept
texts/web.jsonl           Phi: lines of which three tenths are right sums, the rest wrong ones and chatter
texts/textbook.jsonl      right sums as text
texts/exercises.jsonl     right sums as questions with answers
========================  ==================================================================================

The weak teacher is the base after a short training by the stage `distill`. It is saved too. In real use
`evolve generate` asks a model behind a server for all of this (docs/case-studies.md). About four minutes on
two cores; a folder that exists is finished and is skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.weights.model import Model

THREADS = 1
TRAINED, ASKED, FEW, WRITTEN = 6000, 2000, 200, 3000
TRIES = 4
WEAK_TOKENS, WEAK_RATE = 280_000, 5e-4
TEMPLATE = "{reasoning}>{answer}"
"""How steps and answer stand together, also `rationale.template` in the search spaces."""


def question(digits: Sequence[int]) -> str:
    """Return the prompt of a sum."""
    return "+".join(map(str, digits)) + "="


def steps(digits: Sequence[int]) -> str:
    """Return how the last digit of a sum comes about, two numbers at a time."""
    found, sum_ = [], digits[0]
    for digit in digits[1:]:
        found.append(f"{sum_}+{digit}={(sum_ + digit) % 10}")
        sum_ = (sum_ + digit) % 10
    return " ".join(found)


def answer(digits: Sequence[int]) -> str:
    """Return the last digit of a sum."""
    return str(sum(digits) % 10)


def row(digits: Sequence[int]) -> dict[str, str]:
    """Return a question with the right reasons and answer."""
    return {
        "prompt": question(digits),
        "completion": answer(digits),
        "reasoning_content": steps(digits),
    }


def read_trace(prompt: str, text: str) -> dict[str, str] | None:
    """Return what a model wrote as a row; None where it gave no reasons or no answer."""
    reasons, mark, last = text.rpartition(">")
    if not (mark and reasons.strip() and last.strip()):
        return None
    return {"prompt": prompt, "completion": last.strip(), "reasoning_content": reasons.strip()}


def split(seed: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the sums for training, and those that are asked."""
    sums = list(itertools.product(range(10), repeat=4))
    random.Random(f"sums {seed}").shuffle(sums)
    return sums[:TRAINED], sums[TRAINED : TRAINED + ASKED]


def line(digits: Sequence[int]) -> str:
    """Return a right sum as text."""
    return question(digits) + TEMPLATE.format(reasoning=steps(digits), answer=answer(digits))


def web(trained: Sequence[Sequence[int]], chatter: Sequence[str], seed: int) -> list[str]:
    """Return lines as one finds them: right sums, wrong ones, and what has nothing to do with it."""
    draw = random.Random(f"web {seed}")
    found = []
    for digits in trained:
        kind = draw.random()
        if kind < 0.3:
            found.append(line(digits))
        elif kind < 0.65:
            # Steps and answer of another sum.
            other = draw.choice(trained)
            found.append(question(digits) + TEMPLATE.format(reasoning=steps(other), answer=answer(other)))
        else:
            found.append(draw.choice(chatter))
    return found


def save_task(asked: Sequence[Sequence[int]], folder: Path) -> None:
    """Write the lm-eval task: the answer is the last digit of what is written."""
    items = [{"question": question(digits), "answer": answer(digits)} for digits in asked]
    write_lines(folder / "sums.jsonl", items)
    (folder / "sums.yaml").write_text(
        "task: demo_sums\n"
        "dataset_path: json\n"
        "dataset_kwargs: {data_files: {test: sums.jsonl}}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        "doc_to_text: question\n"
        "doc_to_target: answer\n"
        'generation_kwargs: {until: ["<|end|>", "\\n"], max_gen_toks: 32, do_sample: false}\n'
        "filter_list:\n"
        "  - name: last_digit\n"
        "    filter: [{function: regex, regex_pattern: '(\\d)\\D*$'}, {function: take_first}]\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 1.0}\n"
    )


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def weak_teacher(base: Model, sums: Path, seed: int) -> Model:
    """Return the base after a training that is too short."""
    from evolve.stages.distill.block import DistillBlock
    from evolve.stages.distill.stage import DistillStage
    from evolve.weights.content import file_content

    block = DistillBlock.model_validate(
        {
            "model": "base",
            "dataset": {
                "path": str(sums),
                "content": file_content(sums),
                "max_tokens": WEAK_TOKENS // 2,
                "max_length": 128,
            },
            "rationale": {"mode": "inline", "template": TEMPLATE},
            "loss_functions": [{"function": "cross_entropy"}],
            "training_args": {
                "learning_rate": WEAK_RATE,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 4,
                "warmup_steps": 0.05,
                "adam_beta2": 0.98,
            },
        }
    )
    return DistillStage.run(block, {"base": base}, seed=seed)


def sampled(model: Model, prompts: Sequence[str], tries: int, seed: int) -> list[list[str]]:
    """Return what a model writes, ``tries`` times a prompt, at temperature 1."""
    from evolve.stages.distill.generation import Generation, complete
    from evolve.weights.network import open_network
    from evolve.weights.tokenizer import load_tokenizer

    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    ids = [tuple(one) for one in tokenizer.encode(list(prompts))]
    written = complete(network, ids * tries, Generation(max_new_tokens=32), seed=seed)
    texts = [tokenizer.loaded.decode(one.tokens, skip_special_tokens=True) for one in written]
    return [texts[place :: len(ids)] for place in range(len(ids))]


def verified(traces: Sequence[dict[str, str] | None]) -> dict[str, str] | None:
    """Return the shortest right one of the tries at a question, or None: rejection sampling."""
    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.verifiers.base import Case
    from evolve.generate.verifiers.numeric import Numeric

    given = [one for one in traces if one is not None]
    cases = [Case(one["completion"], solved(one["prompt"]), {}) for one in given]
    verdicts = Numeric.judge(VerifyBlock(kind="numeric", field="answer"), cases)
    right = [one for one, verdict in zip(given, verdicts, strict=True) if verdict.right]
    return min(right, key=lambda one: len(one["reasoning_content"]), default=None)


def solved(prompt: str) -> str:
    """Return the answer of a question."""
    return answer([int(digit) for digit in prompt.rstrip("=").split("+")])


def make(out: Path, demo: Path, seed: int) -> None:
    """Make what is missing below ``out``."""
    if (out / "texts").exists():
        print(f"{out}: the data of the case studies are there already")
        return
    import torch

    from evolve.weights.content import content_of
    from evolve.weights.reader import open_model
    from evolve.weights.writer import write_model

    if not (demo / "base").exists():
        raise SystemExit(f"{demo / 'base'}: no such folder; make it with python scripts/demo_models.py")
    torch.set_num_threads(THREADS)
    trained, asked = split(seed)
    part = out / ".texts.partial"
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(out / "tasks", ignore_errors=True)
    save_task(asked, out / "tasks")
    write_lines(part / "sums.jsonl", map(row, trained))
    write_lines(part / "few.jsonl", map(row, trained[:FEW]))
    write_lines(part / "exercises.jsonl", map(row, trained))
    write_lines(part / "textbook.jsonl", ({"text": line(digits)} for digits in trained))
    chatter = [json.loads(one)["text"] for one in (demo / "texts" / "towns.jsonl").read_text().splitlines()]
    write_lines(part / "web.jsonl", ({"text": one} for one in web(trained, chatter, seed)))

    base = replace(open_model(demo / "base"), content=content_of(demo / "base"))
    weak = weak_teacher(base, part / "sums.jsonl", seed)
    if not (out / "weak").exists():
        write_model(weak, out / "weak")
    prompts = [question(digits) for digits in trained[:WRITTEN]]
    tries = [
        [read_trace(prompt, text) for text in texts]
        for prompt, texts in zip(prompts, sampled(weak, prompts, TRIES, seed), strict=True)
    ]
    first = [one[0] for one in tries if one[0] is not None]
    kept = [one for one in map(verified, tries) if one is not None]
    right = sum(one["completion"] == solved(one["prompt"]) for one in first)
    print(f"the weak teacher: {len(first)} answers with reasons, {right / len(first):.2f} of them right")
    print(f"verified: {len(kept)} of {len(prompts)} questions have a right one in {TRIES} tries")
    write_lines(part / "weak.jsonl", first)
    write_lines(part / "verified.jsonl", kept)
    part.rename(out / "texts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("models/demo_reasons"), help="folder for the data")
    parser.add_argument("--demo", type=Path, default=Path("models/demo"), help="folder of demo_models.py")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    options = parser.parse_args()
    began = time.monotonic()
    make(options.out, options.demo, options.seed)
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("evolve").setLevel(logging.INFO)
    main()
