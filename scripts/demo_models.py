"""Make the demo's parents and tasks: a small Llama that half knows three fields, and an expert in each.

    python scripts/demo_models.py [--out models/demo] [--seed 0]

The three fields (beasts, towns, elixirs) are invented: 120 names each, three facts a name, six ways to state
a fact. For each fact two of the six ways are kept out of all training; the tasks ask in those ways, four
answers to choose from. The base sees all fields for a short time. Each expert goes on with one field, and
forgets some of the others. Nothing else is arranged: what the models can do comes out of training.

Everything is trained here, on the CPU, in fp32, seeded; about two minutes on two cores. A folder that exists
is finished and is skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 2
NAMES = 120
VOCABULARY = 512
BATCH = 64
BASE_STEPS, BASE_RATE = 320, 2e-3
EXPERT_STEPS, EXPERT_RATE = 220, 6e-4
TEXTS = 4000
END = "<|end|>"


class Attribute(NamedTuple):
    """One kind of fact: its possible values, and the ways to state it."""

    values: tuple[str, ...]
    ways: tuple[str, ...]


def _attribute(values: str, *ways: str) -> Attribute:
    return Attribute(tuple(values.split()), ways)


FIELDS: dict[str, dict[str, Attribute]] = {
    "beasts": {
        "colour": _attribute(
            "red blue green grey white black pink brown",
            "the {} is",
            "the coat of the {} is",
            "what colour is the {} ?",
            "in summer the {} turns",
            "we know the {} by its colour :",
            "children paint the {}",
        ),
        "home": _attribute(
            "forest river desert cave island swamp tundra meadow",
            "the {} lives in the",
            "you find the {} in the",
            "where does the {} sleep ? in the",
            "the home of the {} is the",
            "hunters look for the {} in the",
            "at night the {} goes to the",
        ),
        "food": _attribute(
            "moss fish seeds bark roots insects berries grass",
            "the {} eats",
            "what does the {} eat ?",
            "the {} is fond of",
            "give the {} some",
            "the food of the {} is",
            "in winter the {} digs for",
        ),
    },
    "towns": {
        "trade": _attribute(
            "wool salt iron glass wine paper silk timber",
            "people in {} sell",
            "the town of {} trades in",
            "what does {} sell ?",
            "the market of {} is full of",
            "ships leave {} with",
            "merchants go to {} for",
        ),
        "ruler": _attribute(
            "queen duke bishop mayor council king abbot sultan",
            "{} is ruled by the",
            "who rules {} ? the",
            "the lord of {} is the",
            "taxes in {} go to the",
            "the keys of {} are with the",
            "{} obeys the",
        ),
        "river": _attribute(
            "Ald Brin Cor Dene Esk Fal Gar Hest",
            "{} lies on the",
            "the river of {} is the",
            "which river runs through {} ? the",
            "boats reach {} by the",
            "the mills of {} stand on the",
            "{} drinks from the",
        ),
    },
    "elixirs": {
        "effect": _attribute(
            "sleep speed strength laughter courage silence sight luck",
            "{} gives",
            "who drinks {} gains",
            "what does {} give ?",
            "the gift of {} is",
            "take {} for",
            "healers use {} for",
        ),
        "taste": _attribute(
            "sweet sour bitter salty spicy smoky bland minty",
            "{} tastes",
            "the taste of {} is",
            "what is the taste of {} ?",
            "on the tongue {} is",
            "all say that {} is",
            "a sip of {} is",
        ),
        "plant": _attribute(
            "nettle willow poppy sage clover thistle ivy fern",
            "{} is made from",
            "the herb in {} is",
            "which herb makes {} ?",
            "to brew {} pick",
            "the smell of {} is that of",
            "{} needs",
        ),
    },
}
"""Field to attribute. A space stands between prompt and answer."""


class World:
    """The invented facts of one seed, and which ways of stating them are kept for the tasks."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(f"world {seed}")
        taken: set[str] = set()
        self.names = {field: [_name(draw, taken) for _ in range(NAMES)] for field in FIELDS}
        self.facts: dict[tuple[str, str, str], str] = {}
        self.kept: dict[tuple[str, str, str], list[int]] = {}
        for field, attributes in FIELDS.items():
            for name in self.names[field]:
                for key, attribute in attributes.items():
                    self.facts[field, name, key] = draw.choice(attribute.values)
                    self.kept[field, name, key] = draw.sample(range(len(attribute.ways)), 2)

    def sentence(self, draw: random.Random, field: str) -> tuple[str, str]:
        """Return prompt and answer of a random fact, stated in a way that the tasks do not use."""
        name = draw.choice(self.names[field])
        key = draw.choice(list(FIELDS[field]))
        attribute = FIELDS[field][key]
        kept = self.kept[field, name, key]
        way = draw.choice([index for index in range(len(attribute.ways)) if index not in kept])
        return attribute.ways[way].format(name), " " + self.facts[field, name, key]

    def items(self, field: str) -> Iterator[dict[str, Any]]:
        """Yield every question of a field: the two kept ways of each fact, with three wrong answers."""
        for name in self.names[field]:
            for key, attribute in FIELDS[field].items():
                fact = self.facts[field, name, key]
                for way in self.kept[field, name, key]:
                    draw = random.Random(f"{field} {name} {key} {way}")
                    wrong = draw.sample([value for value in attribute.values if value != fact], 3)
                    choices = draw.sample([fact, *wrong], 4)
                    question = attribute.ways[way].format(name)
                    yield {"question": question, "choices": choices, "answer": choices.index(fact)}


def _name(draw: random.Random, taken: set[str]) -> str:
    while True:
        syllables = [draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(2)]
        name = "".join(syllables) + draw.choice("bdgklmnprst")
        if name not in taken:
            taken.add(name)
            return name


def make_tokenizer(world: World, seed: int) -> Any:
    """Train a byte-level BPE tokenizer on the sentences that training uses."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    draw = random.Random(f"tokenizer {seed}")
    texts = ["".join(world.sentence(draw, field)) for field in FIELDS for _ in range(3000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def make_model(tokenizer: Any, seed: int) -> Any:
    """Return an untrained Llama of about 0.8 M parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


class Course(NamedTuple):
    """What a model is trained on, and how."""

    name: str
    fields: tuple[str, ...]
    steps: int
    rate: float
    answers_only: bool


def train(model: Any, tokenizer: Any, world: World, course: Course, seed: int) -> None:
    """Train in place: AdamW, a short warm-up, then a cosine to a twentieth of the rate."""
    import torch

    draw = random.Random(f"{course.name} {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, betas=(0.9, 0.98), weight_decay=0.05)
    began = time.monotonic()
    model.train()
    for step in range(course.steps):
        share = min(1.0, (step + 1) / 30)
        share *= 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * step / course.steps))
        for group in optimizer.param_groups:
            group["lr"] = course.rate * share
        sentences = [world.sentence(draw, draw.choice(course.fields)) for _ in range(BATCH)]
        inputs, labels = _batch(tokenizer, sentences, answers_only=course.answers_only)
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 80 == 79 or step + 1 == course.steps:
            seconds = time.monotonic() - began
            print(f"  {course.name}: step {step + 1}/{course.steps}, loss {loss.item():.3f}, {seconds:.0f} s")
    model.eval()


def _batch(tokenizer: Any, sentences: list[tuple[str, str]], *, answers_only: bool) -> tuple[Any, Any]:
    import torch

    prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in sentences]
    texts = [
        tokenizer(prompt + answer)["input_ids"] + [tokenizer.eos_token_id] for prompt, answer in sentences
    ]
    longest = max(map(len, texts))
    inputs = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full((len(texts), longest), -100)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        inputs[row, : len(text)] = torch.tensor(text)
        first = len(prompt) if answers_only else 0
        labels[row, first : len(text)] = inputs[row, first : len(text)]
    return inputs, labels


def save_model(model: Any, tokenizer: Any, folder: Path, description: str) -> None:
    """Write a model folder; it has its name only when it is whole."""
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    card = f"---\nlicense: apache-2.0\n---\n\n{description}\n\nMade by scripts/demo_models.py of evolve.\n"
    (part / "README.md").write_text(card)
    part.rename(folder)


def save_tasks(world: World, folder: Path) -> None:
    """Write an lm-eval task for each field: YAML beside its JSONL, no code, no network."""
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for field in FIELDS:
        lines = [json.dumps(item) for item in world.items(field)]
        (part / f"{field}.jsonl").write_text("\n".join(lines) + "\n")
        (part / f"{field}.yaml").write_text(
            f"task: demo_{field}\n"
            "dataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {field}.jsonl}}}}\n"
            "test_split: test\n"
            "output_type: multiple_choice\n"
            "doc_to_text: question\n"
            "doc_to_choice: choices\n"
            "doc_to_target: answer\n"
            "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
            "metadata: {version: 1.0}\n"
        )
    part.rename(folder)


def save_texts(world: World, folder: Path, seed: int) -> None:
    """Write texts of each field: sentences as training has them, and those of the ways that it never uses."""
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for field in FIELDS:
        draw = random.Random(f"texts {field} {seed}")
        seen = ["".join(world.sentence(draw, field)) for _ in range(TEXTS)]
        items = list(world.items(field))
        kept = [f"{item['question']} {item['choices'][item['answer']]}" for item in items]
        for name, texts in ((field, seen), (f"{field}_heldout", kept)):
            (part / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    part.rename(folder)


def make(out: Path, seed: int) -> None:
    """Make whatever is missing below ``out``."""
    names = ["base", *FIELDS]
    if all((out / name).exists() for name in [*names, "tasks", "texts"]):
        print(f"{out}: the demo models and tasks are there already")
        return
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)
    world = World(seed)
    if not (out / "texts").exists():
        save_texts(world, out / "texts", seed)
    if not (out / "tasks").exists():
        save_tasks(world, out / "tasks")
    if not (out / "base").exists():
        tokenizer = make_tokenizer(world, seed)
        model = make_model(tokenizer, seed)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"training {out / 'base'} ({count / 1e6:.1f} M parameters) on {', '.join(FIELDS)}")
        train(model, tokenizer, world, Course("base", tuple(FIELDS), BASE_STEPS, BASE_RATE, False), seed)
        save_model(model, tokenizer, out / "base", "A small Llama that half knows three invented fields.")
    for field in FIELDS:
        if (out / field).exists():
            continue
        print(f"training {out / field}, an expert in {field}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "base")
        model = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        train(model, tokenizer, world, Course(field, (field,), EXPERT_STEPS, EXPERT_RATE, True), seed)
        save_model(
            model, tokenizer, out / field, f"The demo's base, trained on with the field {field} alone."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("models/demo"), help="folder for models and tasks")
    parser.add_argument("--seed", type=int, default=0, help="seed of facts, initial weights and data order")
    options = parser.parse_args()
    began = time.monotonic()
    make(options.out, options.seed)
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
