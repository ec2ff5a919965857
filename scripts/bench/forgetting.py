"""What continual pre-training gains and forgets at demo scale: replay, regularisers, LoRA, WiSE-FT, order.

    python scripts/bench/forgetting.py [--seeds 3] [--arms replay_25 ewc_10 ...] [--json FILE]

A byte-level Llama of 0.9 M parameters is trained on the docstrings of Python's standard library, and goes on
with the licence texts of the installed packages. Bits per byte of held-out paragraphs, lower is better:
licences (the new domain), docstrings (the old one), and pydoc's topics, which neither training saw. The arm
`control` goes on with as many bytes of the old text. All is trained by the stage cpt and kept in its cache: a
run that is stopped goes on where it was.

Behind every arm the straight line from the start to it is measured too, which needs no training, so that arms
are compared where they have gained the same. Of no replay and EWC the divergence from the start is shown
beside the quadratic form that EWC holds small.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

# This folder, which Python puts on its path for a script.
from drift import drift
from forgetting_tables import CONTROL, TEXTS, YARDSTICK, arms_table, drift_table, matched_table
from report import earlier

from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.training.collate import collate, logits_of
from evolve.training.corpus_rows import Layout, make_rows
from evolve.training.documents import Documents, choose
from evolve.training.regularizers.ewc import EwcBlock
from evolve.training.rows import IGNORED
from evolve.types import content_hash
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evolve.weights.model import Model

LENGTH = 256

ARMS: dict[str, dict[str, Any]] = {
    YARDSTICK: {},
    **{f"replay_{share}": {"replay": share / 100} for share in (5, 25, 50)},
    **{f"ewc_{weight}": {"regularizers": {"ewc": weight}} for weight in (1, 10, 100, 500)},
    "l2sp_0.1": {"regularizers": {"l2sp": 0.1}},
    "lora": {"peft_config": {"r": 16}, "rate": 3e-3},
    **{f"wise_ft_{share}": {"wise_ft": {"alpha": share / 100}} for share in (25, 50, 75)},
    "curriculum": {"curriculum": {"order": "base_loss", "pacing": 0.2}},
    "curriculum_reversed": {"curriculum": {"order": "base_loss", "pacing": 0.2, "reverse": True}},
    CONTROL: {"dataset": "docstrings"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"), help="texts, start and results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument(
        "--alphas", nargs="*", type=float, default=[0.25, 0.5, 0.75], help="of every arm's sweep"
    )
    parser.add_argument("--base-bytes", type=int, default=1_500_000)
    parser.add_argument("--bytes", type=int, default=600_000, help="of each arm, replay among them")
    parser.add_argument(
        "--json", type=Path, help="every measurement, for programs; read again by the next run"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = make_texts(options.out / "texts")
    base = make_start(options.out / "start", texts, options.base_bytes)
    files = [file_content(path) for both in texts.values() for path in both]
    setting = content_hash({"start": base.content, "texts": files, "bytes": options.bytes})
    found = earlier(options.json, setting) or [{"arm": "start", "seed": None, **measured(base, texts)}]
    found[0]["setting"] = setting
    done = {(entry["arm"], entry["seed"], entry.get("alpha")) for entry in found}
    print(f"start {line(found[0])}", flush=True)
    for seed in range(options.seeds):
        for arm in options.arms:
            for alpha in (None, *(options.alphas if swept(arm) else ())):
                if (arm, seed, alpha) in done:
                    continue
                began = time.monotonic()
                model = CptStage.run(block_of(arm, texts, options.bytes, alpha), {"base": base}, seed=seed)
                entry = {"setting": setting, "arm": arm, "seed": seed, "alpha": alpha}
                entry |= measured(model, texts)
                if alpha is None and drifts(arm):
                    plain = {**data(texts["docstrings"][0]), "weight": 1.0}
                    entry |= drift(
                        EwcBlock.model_validate(plain), base, model, length=LENGTH, seed=seed
                    )._asdict()
                found.append(entry)
                name = arm if alpha is None else f"{arm} at {alpha:g}"
                print(f"{name} seed {seed} {line(entry)} ({time.monotonic() - began:.0f} s)", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1))
    report(found, options.arms, options.seeds)


def swept(arm: str) -> bool:
    """Whether the way from the start to this arm is measured; some arms are points of such a way."""
    return arm != CONTROL and "wise_ft" not in ARMS[arm]


def drifts(arm: str) -> bool:
    return arm == YARDSTICK or "ewc" in ARMS[arm].get("regularizers", {})


def make_texts(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write each text once, split into training and held-out paragraphs by their hash; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, documents in (("docstrings", docstrings), ("licences", licences), ("topics", topics)):
        train, held = folder / f"{name}.jsonl", folder / f"{name}_held_out.jsonl"
        if not held.exists():
            paragraphs = {
                " ".join(text.split()): text for whole in documents() for text in whole.split("\n\n")
            }
            parts: dict[bool, list[str]] = {True: [], False: []}
            for key, text in paragraphs.items():
                if len(key) >= 60:
                    parts[hashlib.sha256(key.encode()).digest()[0] < 26].append(text.strip())
            for path, chosen in ((train, parts[False]), (held, parts[True])):
                path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
        found[name] = (train, held)
    return found


def docstrings() -> Iterable[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def licences() -> Iterable[str]:
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/**/*")):
        if path.is_file() and any(word in path.name.upper() for word in ("LICEN", "COPYING", "NOTICE")):
            yield path.read_text(errors="ignore")


def topics() -> Iterable[str]:
    from pydoc_data.topics import topics as found

    return found.values()


def make_start(folder: Path, texts: dict[str, tuple[Path, Path]], size: int) -> Model:
    """Return the base: trained on docstrings by the stage cpt from random weights."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    random = folder / "random"
    if not (random / "config.json").exists():
        tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
        whole.save_pretrained(random)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(random)
    start = replace(open_model(random), content=content_of(random))
    block = CptBlock.model_validate(
        {
            "model": "base",
            "dataset": {**data(texts["docstrings"][0]), "max_bytes": size, "max_length": LENGTH},
            "training_args": arguments(3e-3),
        }
    )
    model = CptStage.run(block, {"base": start}, seed=0)
    return replace(model, content=f"{start.content}-{size}")


def data(path: Path) -> dict[str, str]:
    return {"path": str(path), "content": file_content(path)}


def arguments(rate: float) -> dict[str, Any]:
    return {
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "per_device_train_batch_size": 4,
    }


def block_of(
    arm: str, texts: dict[str, tuple[Path, Path]], size: int, alpha: float | None = None
) -> CptBlock:
    """Return the block of an arm. Replay and the Fisher information see old training text, never held-out.

    Args:
        arm: One of ARMS.
        texts: Name to training and held-out text.
        size: Bytes that are seen.
        alpha: How far from the start towards the trained model; None: as the arm has it.
    """
    plan = dict(ARMS[arm])
    rate = plan.pop("rate", 1e-3)
    old = data(texts["docstrings"][0])
    seen = data(texts[plan.pop("dataset", "licences")][0])
    block: dict[str, Any] = {
        "model": "base",
        "dataset": {**seen, "max_bytes": size, "max_length": LENGTH},
        "training_args": arguments(rate),
    }
    if alpha is not None:
        plan["wise_ft"] = {"alpha": alpha}
    if "replay" in plan:
        block["replay"] = {**old, "share": plan.pop("replay")}
    if "regularizers" in plan:
        block["regularizers"] = {
            name: {"weight": float(weight), **(old if name == "ewc" else {})}
            for name, weight in plan.pop("regularizers").items()
        }
    return CptBlock.model_validate({**block, **plan})


def measured(model: Model, texts: dict[str, tuple[Path, Path]], most: int = 40_000) -> dict[str, float]:
    """Return the bits per byte of each held-out text, every paragraph by itself after the first byte."""
    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    found = {}
    for name in TEXTS:
        chosen = choose(Documents(texts[name][1]), seed=0, max_bytes=most)
        rows = make_rows(chosen, tokenizer.documents, Layout(LENGTH)).rows
        nats = count = 0.0
        with torch.no_grad():
            for start in range(0, len(rows), 16):
                batch = collate(rows[start : start + 16], 0)
                # A byte is a token; the mark of the end is none of the text.
                targets = batch["labels"][:, 1:].masked_fill(batch["labels"][:, 1:] == tokenizer.end, IGNORED)
                logits = logits_of(network, batch)[:, :-1]
                nats += float(
                    torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1), targets.flatten(), reduction="sum"
                    )
                )
                count += int((targets != IGNORED).sum())
        found[name] = nats / math.log(2) / count
    return found


def line(entry: dict[str, Any]) -> str:
    return " ".join(f"{name} {entry[name]:.3f}" for name in TEXTS)


def report(found: list[dict[str, Any]], arms: list[str], seeds: int) -> None:
    """Print the tables of these arms and of what they are held against, with 95 % intervals over seeds."""
    wanted = {*arms, YARDSTICK, CONTROL}
    asked = [found[0], *(entry for entry in found[1:] if entry["arm"] in wanted and entry["seed"] < seeds)]
    print("", *arms_table(asked), sep="\n")
    for title, lines in (
        (
            "forgetting where each arm, interpolated from the start, reaches the same gain",
            matched_table(asked),
        ),
        ("on the text of the Fisher information, thousandths of a nat per token", drift_table(asked)),
    ):
        if lines:
            print(f"\n{title}\n", *lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
