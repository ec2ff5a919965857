"""What a sequence of domains does to the ones before and after: backward and forward transfer, by replay.

    python scripts/demo_models.py        # once
    python scripts/bench/transfer.py [--seeds 3] [--share 0.25] [--json FILE]

The demo's base goes on with its beasts, then with its towns, then with its elixirs, each by a stage cpt that
starts from the one before. Without replay every stage sees its own field alone; with it a share of the same
bytes are texts of the fields before, never of those to come, so the first stage is the same in both. After
every stage all three fields are measured in the ways of stating a fact that no training uses: accuracy on the
demo's tasks, and bits per byte. The base has seen a little of every field. The definitions are those of
evolve/score/forgetting.py. Everything that is trained is kept in the cache of stages: a run that is stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

# This folder, which Python puts on its path for a script.
from report import earlier, mean
from students import accuracy
from vocabulary import bits_of

from evolve.score.forgetting import average, backward_transfer, forward_transfer, mean_forgetting
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.types import content_hash
from evolve.weights.content import content_of, data_content, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from evolve.weights.model import Model

    Entries = list[dict[str, Any]]

FIELDS = ("beasts", "towns", "elixirs")
ARMS = ("no_replay", "replay")
LENGTH = 64
SIGNS = {"accuracy": 1, "bits": -1}
"""Measure to the sign that makes more of it better."""
FIGURES = ("after the last stage", "backward transfer", "forward transfer", "forgetting")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("models/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="texts that are replayed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25, help="of the bytes that are replay")
    parser.add_argument(
        "--bytes", type=int, default=100_000, help="of an epoch of a stage, replay among them"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--items", type=int, default=360, help="questions of each task")
    parser.add_argument(
        "--json", type=Path, help="every measurement, for programs; read again by the next run"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = open_model(options.demo / "base")
    base = replace(base, content=content_of(options.demo / "base"))
    setting = content_hash(
        {
            "base": base.content,
            "texts": data_content(options.demo / "texts"),
            "numbers": [options.share, options.bytes, options.epochs, options.items],
        }
    )
    found = earlier(options.json, setting)
    if not found:
        found = [{"setting": setting, "arm": "start", "seed": None, **measured(base, options)}]
    done = {(entry["arm"], entry["seed"], entry.get("stage")) for entry in found}
    for seed in range(options.seeds):
        for arm in ARMS:
            model = base
            for stage, field in enumerate(FIELDS):
                began = time.monotonic()
                model = CptStage.run(block_of(arm, stage, options), {"base": model}, seed=seed)
                if (arm, seed, stage) in done:
                    continue
                entry = {"setting": setting, "arm": arm, "seed": seed, "stage": stage}
                found.append({**entry, **measured(model, options)})
                figures = " ".join(f"{found[-1][f'accuracy {name}']:.3f}" for name in FIELDS)
                print(f"{arm} seed {seed} {field}: {figures} ({time.monotonic() - began:.0f} s)", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1))
    print(*report(found, options.seeds), sep="\n")


def block_of(arm: str, stage: int, options: argparse.Namespace) -> CptBlock:
    """Return a stage of the sequence; its start is the model before it."""
    path = options.demo / "texts" / f"{FIELDS[stage]}.jsonl"
    block: dict[str, Any] = {
        "model": "base",
        "dataset": {
            "path": str(path),
            "content": file_content(path),
            "max_bytes": options.bytes,
            "max_length": LENGTH,
        },
        "training_args": {
            "learning_rate": 6e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.03,
            "num_train_epochs": options.epochs,
            "per_device_train_batch_size": 16,
        },
    }
    if arm == "replay" and stage:
        before = earlier_texts(stage, options.demo, options.out)
        block["replay"] = {"path": str(before), "content": data_content(before), "share": options.share}
    return CptBlock.model_validate(block)


def earlier_texts(stage: int, demo: Path, out: Path) -> Path:
    """Return a folder with the texts of the fields before a stage."""
    folder = out / f"before_{FIELDS[stage]}"
    folder.mkdir(parents=True, exist_ok=True)
    for field in FIELDS[:stage]:
        shutil.copyfile(demo / "texts" / f"{field}.jsonl", folder / f"{field}.jsonl")
    return folder


def measured(model: Model, options: argparse.Namespace) -> dict[str, float]:
    """Return accuracy and bits per byte of every field."""
    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    found = {}
    for field in FIELDS:
        lines = (options.demo / "tasks" / f"{field}.jsonl").read_text(encoding="utf-8").splitlines()
        # Taken evenly: the questions about one name stand together.
        step = max(1, len(lines) // options.items)
        items = [json.loads(line) for line in lines[::step]][: options.items]
        found[f"accuracy {field}"] = accuracy(network, tokenizer, items)
        held = options.demo / "texts" / f"{field}_heldout.jsonl"
        found[f"bits {field}"] = bits_of(network, tokenizer, held).per_byte
    return found


def figures_of(found: Entries, arm: str, seed: int, measure: str) -> list[float] | None:
    """Return FIGURES of a sequence, more is better but for forgetting; None: it is not finished."""
    rows = {entry["stage"]: entry for entry in found if (entry["arm"], entry["seed"]) == (arm, seed)}
    if len(rows) < len(FIELDS):
        return None
    sign = SIGNS[measure]

    def scores(entry: dict[str, Any]) -> list[float]:
        return [sign * entry[f"{measure} {field}"] for field in FIELDS]

    table = [scores(rows[stage]) for stage in range(len(FIELDS))]
    return [
        sign * average(table),
        backward_transfer(table),
        forward_transfer(table, scores(found[0])),
        mean_forgetting(table),
    ]


def report(found: Entries, seeds: int) -> list[str]:
    """Return the tables with 95 % intervals over the seeds, differences paired by seed."""
    lines: list[str] = []
    for measure in SIGNS:
        known = {
            arm: {seed: one for seed in range(seeds) if (one := figures_of(found, arm, seed, measure))}
            for arm in ARMS
        }
        lines += ["", f"| {measure} | {' | '.join(FIGURES)} |", "|---|---|---|---|---|"]
        for arm, figures in known.items():
            if figures:
                cells = [mean(list(column)) for column in zip(*figures.values(), strict=True)]
                lines.append(f"| {arm} | {' | '.join(cells)} |")
        both = sorted(known["replay"].keys() & known["no_replay"].keys())
        if both:
            pairs = [zip(known["replay"][seed], known["no_replay"][seed], strict=True) for seed in both]
            differences = [[one - other for one, other in pair] for pair in pairs]
            cells = [mean(list(column)) for column in zip(*differences, strict=True)]
            lines.append(f"| replay minus no_replay | {' | '.join(cells)} |")
        lines += ["", *_after_each(found, measure, seeds)]
    return lines


def _after_each(found: Entries, measure: str, seeds: int) -> list[str]:
    """Return the means over the seeds of every field after every stage."""
    lines = [f"| {measure} after | {' | '.join(FIELDS)} |", "|---|---|---|---|"]
    first = [f"{found[0][f'{measure} {field}']:.3f}" for field in FIELDS]
    lines.append(f"| start | {' | '.join(first)} |")
    for arm in ARMS:
        for stage, name in enumerate(FIELDS):
            entries = [
                entry
                for entry in found[1:]
                if (entry["arm"], entry["stage"]) == (arm, stage) and entry["seed"] < seeds
            ]
            if entries:
                means = [
                    statistics.mean(entry[f"{measure} {field}"] for entry in entries) for field in FIELDS
                ]
                lines.append(f"| {arm}, {name} | {' | '.join(f'{value:.3f}' for value in means)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
