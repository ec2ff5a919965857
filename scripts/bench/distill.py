"""Training with a teacher against TRL's GKDTrainer: tokens per second and peak memory, in turns.

    scripts/oracle/trl_env.sh            # once: TRL 1.16.0 in an environment of its own
    python scripts/demo_models.py        # for the shape `demo`
    python scripts/bench/distill.py [--shapes demo smollm2] [--functions kl jsd] [--rounds 5] [--json FILE]

Both train the same student with the same teacher on the same rows in the same order and batches, float32,
AdamW, a constant rate, no gradient checkpointing, GKD with lambda 0. Each side is a process of its own; one
trains while the other waits, some steps a turn, the first of a round in turns too. So a busy machine
disturbs both, and the ratio of a round holds; the median of the rounds is given, with their range. The losses
of the first steps are compared before anything counts.

The shape `demo` are the demo's models and texts, `smollm2` random models of SmolLM2's width and vocabulary, 6
layers as student and 12 as teacher. Memory is the peak of what is resident, above the libraries'. Its limit
is what must be there: weights, gradients and two moments of the student, weights of the teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import Row, table, write

ROOT = Path(__file__).resolve().parents[2]
WARMUP = 2
FUNCTIONS = ("kl", "reverse_kl", "jsd")
SHAPES = ("demo", "smollm2")


def demo(folder: Path, models: Path, rows: int) -> dict[str, Any]:
    """Return the job of the demo's models: short sentences, many a batch."""
    from evolve.stages.distill.data import Layout, read, rows_of
    from evolve.weights.reader import open_model
    from evolve.weights.tokenizer import load_tokenizer

    student = open_model(models / "base")
    documents, _ = read(models / "texts/towns.jsonl", load_tokenizer(student.files, student.config), 64)
    chosen = rows_of(documents, Layout(64, packing=False, epochs=-(-rows // len(documents)))).rows
    return {
        "student": str(models / "base"),
        "teacher": str(models / "towns"),
        "rows": [row.tokens.tolist() for row in chosen[:rows]],
        "length": 64,
        "vocabulary": 512,
        "rate": 1e-3,
    }


def smollm2(folder: Path, models: Path, rows: int, length: int = 256) -> dict[str, Any]:
    """Return the job of random models of SmolLM2's shape, fewer layers: random rows of one length."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = 49_152
    for name, layers in (("student", 6), ("teacher", 12)):
        if (folder / name / "config.json").exists():
            continue
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        # Nobody encodes anything: the rows are numbers.
        tokens = {f"t{number}": number for number in range(vocabulary)}
        whole = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(BPE(tokens, [])), eos_token="t0", pad_token="t0"
        )
        whole.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(0)
    return {
        "student": str(folder / "student"),
        "teacher": str(folder / "teacher"),
        "rows": torch.randint(1, vocabulary, (rows, length), generator=draw).tolist(),
        "length": length,
        "vocabulary": vocabulary,
        "rate": 1e-4,
    }


PLANS = {"demo": (demo, 64, 20), "smollm2": (smollm2, 4, 1)}
"""Shape to what makes its job, rows a batch, and steps a turn."""


class Side:
    """A process that trains when it is told to."""

    def __init__(self, python: Path, job: Path, name: str, threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        self._errors = job.with_name(f"{name}.log")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).with_name("one_distill.py")), str(job), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def answer(self) -> dict[str, Any]:
        """Wait for what the last turn gave. Other lines that a library prints are passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{") and line.rstrip().endswith("}"):
                try:
                    found: dict[str, Any] = json.loads(line)
                except ValueError:
                    continue
                return found
        raise SystemExit(self._errors.read_text()[-3000:])

    def turn(self) -> dict[str, Any]:
        """Let it train for a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def measure(options: argparse.Namespace, shape: str, function: str, folder: Path) -> dict[str, Any]:
    """Return the rounds of one shape and loss."""
    make, batch, pause = PLANS[shape]
    steps = WARMUP + options.rounds * pause
    place = folder / shape
    place.mkdir(exist_ok=True)
    job = {
        **make(place, options.models, steps * batch),
        "function": function,
        "batch": batch,
        "pause": pause,
        "warmup": WARMUP,
        "threads": options.threads,
        "folder": str(place / function),
    }
    path = place / f"{function}.json"
    path.write_text(json.dumps(job))
    pythons = {"ours": Path(sys.executable), "trl": options.trl / "bin/python"}
    sides: dict[str, Side] = {}
    try:
        first = {}
        for name, python in pythons.items():
            sides[name] = Side(python, path, name, options.threads)
            first[name] = sides[name].answer()["losses"]
        for one, other in zip(first["ours"], first["trl"], strict=True):
            if abs(one - other) > 1e-4 * abs(other):
                raise SystemExit(f"{shape}, {function}: the losses are not the same: {first}")
        rounds: list[dict[str, Any]] = []
        for number in range(options.rounds):
            order = list(pythons) if number % 2 == 0 else list(pythons)[::-1]
            found = {name: sides[name].turn() for name in order}
            start = (WARMUP + number * pause) * batch
            tokens = sum(map(len, job["rows"][start : start + pause * batch]))
            rounds.append({"tokens": tokens, **found})
    finally:
        for side in sides.values():
            side.close()
    return {"losses": first, "rounds": rounds, "limit": _least(job)}


def _least(job: dict[str, Any]) -> float:
    """Return MiB of weights, gradients and moments, float32."""
    from evolve.weights.reader import open_model

    count = {
        side: sum(_size(spec.shape) for spec in open_model(Path(job[side])).specs.values())
        for side in ("student", "teacher")
    }
    return 4 * (4 * count["student"] + count["teacher"]) / 2**20


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def rows_of_result(name: str, found: dict[str, Any]) -> list[Row]:
    """Return the rows of one shape and loss: medians of the rounds."""
    rows = []
    for key, label in (("wall", "seconds"), ("cpu", "CPU seconds")):
        ours, peer = (
            statistics.median(1000 * one[side][key] / one["tokens"] for one in found["rounds"])
            for side in ("ours", "trl")
        )
        rows.append(Row(f"{name}, {label} for 1,000 tokens", ours, peer))
    last = found["rounds"][-1]
    rows.append(Row(f"{name}, MiB at the peak", last["ours"]["peak"], last["trl"]["peak"], found["limit"]))
    return rows


def sentence(name: str, found: dict[str, Any]) -> str:
    """Return tokens per second, and the ratio of the rounds with its range."""
    rounds = found["rounds"]
    speed = {
        side: statistics.median(one["tokens"] / one[side]["wall"] for one in rounds)
        for side in ("ours", "trl")
    }
    apart = max(
        abs(one - other) / abs(other)
        for one, other in zip(found["losses"]["ours"], found["losses"]["trl"], strict=True)
    )
    parts = [f"{name}: {speed['ours']:.0f} tokens/s, TRL {speed['trl']:.0f}"]
    for key, label in (("wall", "wall time"), ("cpu", "CPU time")):
        ratios = [one["trl"][key] / one["ours"][key] for one in rounds]
        parts.append(
            f"{label} TRL / ours {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        )
    return ", ".join([*parts, f"{len(rounds)} rounds, first losses {apart:.1e} apart"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--functions", nargs="+", default=["kl", "jsd"], choices=FUNCTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, default=ROOT / "models/demo")
    parser.add_argument("--trl", type=Path, default=ROOT / ".venv-trl")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            for function in options.functions:
                name = f"{shape}, {function}"
                runs[name] = measure(options, shape, function, Path(folder))
                rows += rows_of_result(name, runs[name])
                print(sentence(name, runs[name]), flush=True)
    print(table(rows))
    write(options.json, {"threads": options.threads, "runs": runs}, rows)


if __name__ == "__main__":
    main()
