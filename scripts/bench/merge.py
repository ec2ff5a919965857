"""How fast a candidate is merged: ours, mergekit's in-memory API and command, and the limit of memory.

    python scripts/bench/merge.py [--parents 3 8] [--methods linear ties] [--pairs 3] [--json FILE]
    python scripts/bench/merge.py --profile --parents 3 --methods linear     # where a candidate's time goes

Models with the tensors of SmolLM2-135M (or scaled by --scale), bfloat16, random, each expert a noised copy of
the base. Ours is what a search does for each candidate: other weights and densities each time, parents mapped
and warm, every tensor merged into one of a running model; and, for the command, `evolve build` onto disk. The
limit: all parents read and one result written at the speed of a copy with the same threads. Ours, the peer
(both warm) and the limit take turns, one call each; figures are medians.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from report import Row, table, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from evolve.weights.model import Model

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "della", "model_stock")
TARGET = {"linear": 2.0, "task_arithmetic": 2.0}
SHARED: dict[str, dict[str, Any]] = {"dare_ties": {"normalize": False}}
DENSE = ("ties", "dare_ties", "della")
_PROFILED = 5
_PARTS = {
    "compiled pass": ("fused",),
    "NaN outside of it": ("no_full_exponent",),
    "copies": ("copy_",),
}


def make_models(folder: Path, parents: int, scale: float) -> list[Path]:
    """Write a base and noised copies of it, with the shapes of SmolLM2-135M, ``scale`` of its 30 layers."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=max(1, round(30 * scale)),
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    state = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    state.pop("lm_head.weight")
    found = []
    for number in range(parents + 1):
        place = folder / ("base" if number == 0 else f"expert{number}")
        place.mkdir()
        noise = {
            name: value
            if number == 0
            else (value.float() + 0.002 * torch.randn(value.shape)).to(torch.bfloat16).contiguous()
            for name, value in state.items()
        }
        save_file(noise, place / "model.safetensors", metadata={"format": "pt"})
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(place)
        _tokenizer(place)
        found.append(place)
    return found


def _tokenizer(place: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(place)


def values(method: str, parents: int, turn: int) -> tuple[list[float], list[float]]:
    """Return weights and densities that differ from turn to turn, as those of a search do."""
    weights = [0.2 + 0.5 / parents + 0.01 * ((turn * 7 + number) % 10) for number in range(parents)]
    densities = [0.4 + 0.02 * ((turn * 3 + number) % 15) for number in range(parents)]
    return weights, densities


def recipe(method: str, folders: list[Path], turn: int) -> Any:
    """Return the recipe of one candidate."""
    from evolve.types import Recipe

    weights, densities = values(method, len(folders) - 1, turn)
    entries: list[dict[str, Any]] = []
    for folder, weight, density in zip(folders[1:], weights, densities, strict=True):
        parameters = {} if method == "model_stock" else {"weight": weight}
        if method in DENSE:
            parameters["density"] = density
        entries.append({"model": folder.name, "parameters": parameters})
    block: dict[str, Any] = {"merge_method": method, "models": entries}
    if method != "linear":
        block["base_model"] = "base"
    block["parameters"] = SHARED.get(method, {})
    names = {folder.name: folder.name for folder in (folders if method != "linear" else folders[1:])}
    return Recipe.make(names, [{"merge": block}])


@dataclass
class Ours:
    """The parents mapped, the engine running, what is kept between candidates."""

    folders: list[Path]
    threads: int
    cache_gib: float | None

    def __post_init__(self) -> None:
        from evolve.stages.memo import Memo, limit_of
        from evolve.validation import free_memory
        from evolve.weights.reader import open_model

        # With a content, as an evaluator gives them: what is kept belongs to these objects.
        self.parents = {
            folder.name: replace(open_model(folder), content=folder.name) for folder in self.folders
        }
        free = None if (found := free_memory()) is None else found // 2  # of one of two evaluators
        self.memo = Memo(
            limit_of(self.parents.values(), free)
            if self.cache_gib is None
            else int(self.cache_gib * (1 << 30))
        )
        base = self.parents["base"]
        self.engine = {name: base.tensor(name).clone() for name in base.specs}

    def candidate(self, method: str, turn: int) -> float:
        """Merge into the engine's tensors; return the seconds."""
        from evolve.stages.pipeline import build
        from evolve.weights.prefetch import prefetched

        began = time.perf_counter()
        model: Model = build(recipe(method, self.folders, turn), self.parents, memo=self.memo)
        prefetched(model, self.threads).fill(self.engine)
        return time.perf_counter() - began

    def command(self, method: str, turn: int, folder: Path) -> float:
        """Build onto disk with the command; return the seconds."""
        document = recipe(method, self.folders, turn)
        config = folder / f"ours-{method}-{turn}.yaml"
        models = {name: str(self.folders[0].parent / name) for name in document.models}
        config.write_text(yaml.safe_dump({"models": models, "pipeline": list(document.pipeline)}))
        return _timed(
            [sys.executable, "-m", "evolve.cli", "build", str(config), str(folder / "ours")], folder
        )


class Peer:
    """mergekit: its API in a process that has the models in memory, and its command."""

    def __init__(self, venv: Path, folders: list[Path], threads: int) -> None:
        self._venv, self._folders, self._threads = venv, folders, threads
        command = [
            str(venv / "bin/python"),
            str(Path(__file__).with_name("peer_merge.py")),
            *map(str, folders),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("mergekit's process ended; see its message above")
        return json.loads(line)

    def candidate(self, method: str, turn: int) -> float:
        """Merge in memory; return the seconds."""
        weights, densities = values(method, len(self._folders) - 1, turn)
        parameters: dict[str, Any] = {} if method == "model_stock" else {"weight": weights}
        if method in DENSE:
            parameters["density"] = densities
        request = {
            "method": method,
            "base": method != "linear",
            "parameters": {**parameters, **SHARED.get(method, {})},
            "threads": self._threads,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def command(self, method: str, turn: int, folder: Path) -> float:
        """Write a folder with mergekit-yaml; return the seconds."""
        [entry] = recipe(method, self._folders, turn).pipeline
        block = json.loads(json.dumps(entry["merge"]))
        for model in block["models"]:
            model["model"] = str(self._folders[0].parent / model["model"])
        if "base_model" in block:
            block["base_model"] = str(self._folders[0])
        config = folder / f"peer-{method}-{turn}.yaml"
        config.write_text(yaml.safe_dump({**block, "dtype": "bfloat16"}))
        return _timed([str(self._venv / "bin/mergekit-yaml"), str(config), str(folder / "peer")], folder)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def _timed(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    for name in ("ours", "peer"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return seconds


def limit(bytes_read: int, bytes_written: int, threads: int) -> float:
    """Return the seconds of reading and writing so much at the speed of a copy with as many threads."""
    size = 128 << 20
    pairs = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]
    best = float("inf")
    for _ in range(5):
        workers = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - began)
    return (bytes_read + bytes_written) * best / (2 * size * threads)


def _pairs(
    pairs: int,
    ours: Callable[[int], float],
    peer: Callable[[int], float] | None,
    floor: Callable[[], float],
) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of each turn: one call of ours, one of the peer's, and the limit."""
    mine, theirs, floors = [], [], []
    for turn in range(pairs):
        mine.append(ours(turn))
        if peer is not None:
            theirs.append(peer(turn))
        floors.append(floor())
    return mine, theirs, floors


def measure(
    options: argparse.Namespace, parents: int, home: Path, rows: list[Row], times: dict[str, Any]
) -> None:
    """Add the rows for one number of parents, and every single time."""
    folder = home / str(parents)
    folder.mkdir()
    folders = make_models(folder, parents, options.scale)
    size = (folders[0] / "model.safetensors").stat().st_size
    ours = Ours(folders, options.threads, options.cache_gib)
    peer = None if options.no_peer else Peer(options.mergekit, folders, options.threads)
    for method in options.methods:
        ours.memo.clear()  # each method is a search of its own
        first = ours.candidate(method, 100)
        if peer is not None:
            peer.candidate(method, 100)  # both are warm
        count = parents + (method != "linear")
        name = f"{method}, {parents} parents"
        times[name] = _pairs(
            options.pairs,
            lambda turn, method=method: ours.candidate(method, turn),
            None if peer is None else lambda turn, method=method: peer.candidate(method, turn),
            lambda count=count: limit(size * count, size, options.threads),
        )
        mine, theirs, floor = (statistics.median(side) if side else None for side in times[name])
        rows.append(Row(f"{name}, into the engine", mine, theirs, floor))
        rows.append(Row(f"{name}, the first candidate", first))
        print(
            f"{name}: {mine:.3f} s, {mine / floor:.1f} times the limit (target {TARGET.get(method, 4.0):g}); "
            f"first {first:.2f} s; kept {ours.memo.nbytes / 2**20:.0f} MiB; "
            + ("" if theirs is None else f"mergekit {theirs:.2f} s, {theirs / mine:.0f} times ours"),
            flush=True,
        )
        if peer is not None and not options.no_command:
            mine, theirs = ours.command(method, 0, folder), peer.command(method, 0, folder)
            times[f"{name}, command"] = [mine], [theirs]
            rows.append(Row(f"{name}, the command onto disk", mine, theirs))
            print(f"{name}, command: {mine:.1f} s, mergekit {theirs:.1f} s", flush=True)
    if peer is not None:
        peer.close()
    shutil.rmtree(folder)


def profile(options: argparse.Namespace, parents: int, home: Path) -> None:
    """Print where the time of a candidate goes, on one thread, by cProfile over several candidates."""
    folder = home / f"profile-{parents}"
    folder.mkdir()
    ours = Ours(make_models(folder, parents, options.scale), 1, options.cache_gib)
    for method in options.methods:
        ours.candidate(method, 100)
        profiler = cProfile.Profile()
        with profiler:
            for turn in range(_PROFILED):
                ours.candidate(method, turn)
        found = pstats.Stats(profiler).get_stats_profile()
        parts = dict.fromkeys(_PARTS, 0.0)
        for function, entry in found.func_profiles.items():
            for name, functions in _PARTS.items():
                if any(one in function for one in functions):
                    parts[name] += entry.tottime / _PROFILED
        whole = found.total_tt / _PROFILED
        listed = ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
        print(
            f"{method}, {parents} parents: {whole:.3f} s: {listed}, Python {whole - sum(parts.values()):.3f}"
        )
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parents", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 30 layers")
    parser.add_argument("--cache-gib", type=float, help="engine.cache_gib")
    parser.add_argument("--no-peer", action="store_true", help="without mergekit")
    parser.add_argument("--no-command", action="store_true", help="without the two commands")
    parser.add_argument("--mergekit", type=Path, default=ROOT / ".venv-mergekit")
    parser.add_argument("--profile", action="store_true", help="where the time goes, and nothing else")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the threads are ours: each works on a tensor of its own
    rows: list[Row] = []
    times: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="evolve-bench-") as home:
        for parents in options.parents:
            if options.profile:
                profile(options, parents, Path(home))
            else:
                measure(options, parents, Path(home), rows, times)
    if options.profile:
        return
    print(table(rows))
    document = {"threads": options.threads, "scale": options.scale, "seconds": times}
    write(options.json, document, rows)


if __name__ == "__main__":
    main()
