"""How much memory and time a distillation loss takes: ours, the loss as one writes it down, and TRL's.

    scripts/oracle/trl_env.sh          # once: TRL 1.16.0 in an environment of its own
    python scripts/bench/losses.py [--tokens 1024 2048] [--functions kl] [--repeats 3] [--json FILE]

With the shapes of SmolLM2-135M (49,152 entries, width 576), float32, one thread. Every way begins with both
models' last hidden states and heads and ends with the gradient of the student's; each runs in a process of
its own. Memory is what is resident above the inputs at the peak, in MiB; the limit is the gradient itself.
Times are CPU seconds, which do not count the waiting on a busy machine. Ours is from the heads unless a row
says otherwise. That all ways give the same loss is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import Row, table, write

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ("kl", "reverse_kl", "jsd")
PEERS = {
    "naive": "as one writes it down",
    "trl-gkd": "TRL's generalized_jsd_loss",
    "trl-chunked": "TRL's chunked divergence",
}


def run(python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run one way and return what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [str(python), str(Path(__file__).with_name("one_loss.py")), json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace, function: str, tokens: int) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of one loss at one number of tokens, and all that was measured."""
    shape = {"tokens": tokens, "vocabulary": options.vocabulary, "width": options.width}
    ways = ["heads", "logits", *(way for way in PEERS if options.trl or not way.startswith("trl"))]
    found = {}
    for way in ways:
        python = options.trl / "bin/python" if way.startswith("trl") else Path(sys.executable)
        job = {"way": way, "function": function, "repeats": options.repeats, **shape}
        found[way] = run(python, job)
        one, other = found[way]["loss"], found["heads"]["loss"]
        if abs(one - other) > 1e-4 * abs(other):
            raise SystemExit(f"{function}: {way} gives {one}, ours {other}")
    mib = {way: result["peak"] / 2**20 for way, result in found.items()}
    seconds = {way: statistics.median(result["seconds"]) for way, result in found.items()}
    limit = 4 * options.width * (options.vocabulary + tokens) / 2**20
    name = f"{function}, {tokens:,} tokens"
    rows = [
        Row(f"{name}, MiB; peer: {PEERS[way]}", mib["heads"], mib[way], limit) for way in ways if way in PEERS
    ]
    rows.append(Row(f"{name}, MiB, from all logits; peer: {PEERS['naive']}", mib["logits"], mib["naive"]))
    rows += [
        Row(f"{name}, CPU seconds; peer: {PEERS[way]}", seconds["heads"], seconds[way])
        for way in ways
        if way in PEERS
    ]
    return rows, {name: found}


def _trl_version(folder: Path | None) -> str | None:
    if folder is None:
        return None
    code = "from importlib.metadata import version; print(version('trl'))"
    command = [str(folder / "bin/python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--functions", nargs="+", default=list(FUNCTIONS), choices=FUNCTIONS)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl", type=Path, default=ROOT / ".venv-trl")
    parser.add_argument("--no-peer", dest="trl", action="store_const", const=None, help="without TRL")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    runs: dict[str, Any] = {}
    for tokens in options.tokens:
        for function in options.functions:
            more, measured = measure(options, function, tokens)
            rows += more
            runs |= measured
            print(table(more), flush=True)
    document = {
        "vocabulary": options.vocabulary,
        "width": options.width,
        "trl": _trl_version(options.trl),
        "runs": runs,
    }
    write(options.json, document, rows)


if __name__ == "__main__":
    main()
