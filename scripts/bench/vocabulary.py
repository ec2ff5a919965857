"""What a larger vocabulary is worth at equal bytes: no extension, and four ways to begin the new rows.

    python scripts/bench/vocabulary.py [--seeds 3] [--arms off subtoken_mean ...] [--json FILE]

The start is that of forgetting.py: a byte-level Llama of 0.9 M parameters, trained on docstrings. Tokens are
chosen from the licence texts of the installed packages, and the model goes on with these texts, every arm
with the same bytes: an extended model sees fewer tokens and takes fewer steps. Bits per byte of held-out
paragraphs before that training, after a short one of its own, and at the end. All arms are asked for the
same bytes: those after the first word, which no tokenizer joins with it, of the first 250 of each paragraph,
so that no context is longer than another. With --json a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

# This folder, which Python puts on its path for a script.
from forgetting import LENGTH, arguments, data, make_start, make_texts
from report import earlier, mean

from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.stages.vocab.block import VocabBlock
from evolve.stages.vocab.stage import VocabStage
from evolve.training.documents import Documents, choose
from evolve.types import content_hash
from evolve.weights.network import open_network
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer

WARM = [{"until": 0.1, "train": "new_embeddings"}, {"until": 0.2, "train": "embeddings"}, {"until": 1.0}]
ARMS: dict[str, dict[str, Any]] = {
    "off": {},
    "subtoken_mean": {"input": "subtoken_mean"},
    "subtoken_mean_warm_up": {"input": "subtoken_mean", "phases": WARM},
    "random": {"input": "random"},
    "mean_all": {"input": "mean_all"},
}
"""The head is tied to the embedding, so the rule of the input is that of both."""
TEXTS = ("licences", "docstrings")
WHEN = ("before", "short", "end")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/vocabulary"), help="texts and start")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--base-bytes", type=int, default=1_500_000)
    parser.add_argument("--bytes", type=int, default=600_000, help="of each training")
    parser.add_argument("--short-bytes", type=int, default=50_000, help="of the short training")
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument(
        "--json", type=Path, help="every measurement, for programs; read again by the next run"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = make_texts(options.out / "texts")
    base = make_start(options.out / "start", texts, options.base_bytes)
    sizes = {"before": 0, "short": options.short_bytes, "end": options.bytes}
    setting = content_hash({"start": base.content, "tokens": options.new_tokens, "sizes": sizes})
    found = earlier(options.json, setting)
    done = {(entry["arm"], entry["seed"], entry["when"]) for entry in found}
    for seed in range(options.seeds):
        for arm in options.arms:
            start = extended(base, texts, arm, options.new_tokens, seed)
            for when in WHEN:
                if (arm, seed, when) in done:
                    continue
                began = time.monotonic()
                model = start if when == "before" else trained(start, texts, arm, sizes[when], seed)
                entry = {"setting": setting, "arm": arm, "seed": seed, "when": when, **measured(model, texts)}
                found.append(entry)
                figures = " ".join(f"{name} {entry[name]:.3f}" for name in TEXTS)
                print(f"{arm} seed {seed} {when}: {figures} ({time.monotonic() - began:.0f} s)", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1))
    report([entry for entry in found if entry["arm"] in options.arms and entry["seed"] < options.seeds])


def extended(base: Model, texts: dict[str, tuple[Path, Path]], arm: str, count: int, seed: int) -> Model:
    """Return the start of an arm: the base, or the base with rows for new tokens."""
    rule = ARMS[arm].get("input")
    if rule is None:
        return base
    block = VocabBlock.model_validate(
        {
            "model": "base",
            "dataset": data(texts["licences"][0]),
            "num_new_tokens": count,
            "selection": {"contrast": data(texts["docstrings"][0])},
            "init": {"input": rule},
        }
    )
    return VocabStage.run(block, {"base": base}, seed=seed)


def trained(start: Model, texts: dict[str, tuple[Path, Path]], arm: str, size: int, seed: int) -> Model:
    """Return the model after so many bytes of the domain."""
    block = CptBlock.model_validate(
        {
            "model": "base",
            "dataset": {**data(texts["licences"][0]), "max_bytes": size, "max_length": LENGTH},
            "phases": ARMS[arm].get("phases", []),
            "training_args": arguments(1e-3),
        }
    )
    return CptStage.run(block, {"base": start}, seed=seed)


class Counted(NamedTuple):
    """What a model needs for some documents.

    Attributes:
        bits: Of each document.
        sizes: Bytes of each document.
        tokens: Of all of them.
    """

    bits: list[float]
    sizes: list[int]
    tokens: int

    @property
    def per_byte(self) -> float:
        """Bits per byte over all."""
        return sum(self.bits) / sum(self.sizes)

    @property
    def bytes_a_token(self) -> float:
        return sum(self.sizes) / self.tokens


def measured(
    model: Model, texts: dict[str, tuple[Path, Path]], most: int = 40_000, length: int = 250
) -> dict[str, float]:
    """Return the bits per byte of each held-out text, and the bytes of a token of the domain."""
    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    bits = {name: bits_of(network, tokenizer, texts[name][1], most=most, length=length) for name in TEXTS}
    found = {name: one.per_byte for name, one in bits.items()}
    return {**found, "bytes_a_token": bits["licences"].bytes_a_token}


def bits_of(
    network: Any, tokenizer: Tokenizer, path: Path, *, most: int = 40_000, length: int = 250
) -> Counted:
    """Return the bits of documents, counting the same bytes whatever the tokenizer.

    Args:
        network: Any.
        tokenizer: Its own.
        path: The text.
        most: Bytes of it.
        length: Bytes of a document that are looked at.

    Raises:
        ValueError: A token goes over the first word of a document, or no document has two words.
    """
    found = Counted([], [], 0)
    for text in choose(Documents(path), seed=0, max_bytes=most).texts():
        cut = text.encode()[:length].decode(errors="ignore")
        first, space, rest = cut.partition(" ")
        if not (first and space and rest.strip()):
            continue
        before, whole = tokenizer.encode([first, cut])
        if whole[: len(before)] != before:
            raise ValueError(f"a token goes over the first word of {cut[:40]!r}")
        with torch.no_grad():
            log_p = torch.log_softmax(network(torch.tensor([whole])).logits[0, :-1], -1)
        targets = torch.tensor(whole[1:])
        nats = -float(log_p.gather(1, targets[:, None])[len(before) - 1 :].sum())
        found.bits.append(nats / math.log(2))
        found.sizes.append(len((space + rest).encode()))
        found = found._replace(tokens=found.tokens + len(whole) - len(before))
    if not found.sizes:
        raise ValueError(f"{path} has no document of two words")
    return found


def report(found: list[dict[str, Any]]) -> None:
    """Print means with 95 % intervals over the seeds, and differences from ``off`` paired by seed."""
    by_key = {(entry["arm"], entry["seed"], entry["when"]): entry for entry in found}
    seeds = sorted({entry["seed"] for entry in found})
    print("\n| arm | bytes a token | before | after a short training | at the end | minus off | docstrings |")
    print("|---|---|---|---|---|---|---|")
    for arm in dict.fromkeys(entry["arm"] for entry in found):
        whole = [seed for seed in seeds if all((arm, seed, when) in by_key for when in WHEN)]
        if not whole:
            continue
        rows = [[by_key[arm, seed, when]["licences"] for seed in whole] for when in WHEN]
        end = [by_key[arm, seed, "end"] for seed in whole]
        paired = [
            by_key[arm, seed, "end"]["licences"] - by_key["off", seed, "end"]["licences"]
            for seed in whole
            if ("off", seed, "end") in by_key
        ]
        cells = [f"{statistics.mean(entry['bytes_a_token'] for entry in end):.2f}", *map(mean, rows)]
        cells += [mean(paired) if paired and arm != "off" else "", mean([one["docstrings"] for one in end])]
        print(f"| {arm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
