"""How much memory `evolve build` takes for parents that are larger than the memory it may use.

    python scripts/bench/memory.py [--gb 3] [--parents 3] [--limit 1.5] [--folder FOLDER] [--json FILE]

Makes a base and two noised copies of it (a Llama of width 2048, bfloat16, as many layers as --gb asks for;
real bytes on the disk, deleted at the end), and builds linear, ties and dare_ties merges of them, each by the
whole command in a process of its own.

What is limited is the resident memory of that process and the files that it has in the cache: a control group
with --limit GB, version 1 or 2, or a scope of systemd, whichever this machine lets us make. Address space
(RLIMIT_AS) is no measure, since mapped parents count there although they take no memory that others need.
Where no group can be made the build runs unlimited, and the peak of anonymous memory, sampled every 10 ms,
says what the limit could have been: pages of mapped files are given back whenever others need memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml
from report import Row, table, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
WIDTH, INNER, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 4, 32000
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.3},
    "dare_ties": {"weight": 0.5, "density": 0.3},
}
_SIZE = 1 << 24
# Twice the same numbers, so that a stretch may begin anywhere.
_POOL = (torch.randn(_SIZE, generator=torch.Generator().manual_seed(0)) * 0.02).repeat(2)


def make_parents(folder: Path, count: int, gigabytes: float) -> list[Path]:
    """Write the parents and return their folders."""
    from transformers import LlamaConfig

    from evolve.weights.model import Model, TensorSpec
    from evolve.weights.writer import write_model

    specs = _shapes(gigabytes)
    layers = sum(name.endswith("input_layernorm.weight") for name in specs)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        architectures=["LlamaForCausalLM"],
    ).to_dict()
    places = []
    for number in range(count):
        places.append(folder / f"parent{number}")
        tensors = {name: TensorSpec(shape, "bfloat16") for name, shape in specs.items()}
        model = Model(config, tensors, _drawn(specs, number), folder)
        write_model(model, places[-1])
    return places


def _shapes(gigabytes: float) -> dict[str, tuple[int, ...]]:
    small = WIDTH * KV_HEADS // HEADS
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (small, WIDTH),
        "self_attn.v_proj": (small, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    ends = 2 * 2 * VOCAB * WIDTH
    size = 2 * sum(torch.Size(shape).numel() for shape in layer.values())
    count = max(1, -(-int(gigabytes * 1e9 - ends) // size))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for number in range(count):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}


def _drawn(specs: dict[str, tuple[int, ...]], parent: int) -> Callable[[str], torch.Tensor]:
    """Return random numbers for each tensor: those of the base, and a tenth of others for an expert."""
    places = {name: number for number, name in enumerate(specs)}

    def tensor(name: str) -> torch.Tensor:
        count = torch.Size(specs[name]).numel()
        value = _from_pool(count, 7919 * places[name])
        if parent:
            value = value + 0.1 * _from_pool(count, 104729 * (places[name] + 1) * parent)
        return value.reshape(specs[name]).bfloat16()

    return tensor


def _from_pool(count: int, start: int) -> torch.Tensor:
    stretch = _POOL[start % _SIZE :][: min(count, _SIZE)]
    return stretch.repeat(-(-count // _SIZE))[:count]


class Limit(NamedTuple):
    """A way to run a command in little memory: its name, words before the command, the file of its peak."""

    what: str
    before: list[str]
    peak: Path | None


@contextlib.contextmanager
def limited(size: int) -> Iterator[Limit]:
    """Yield the first way that works here; none is no limit."""
    enter = 'echo $$ > "$0" && exec "$@"'
    for group, setting, peak in _groups():
        try:
            group.mkdir()
            (group / setting).write_text(str(size))
        except OSError:
            _remove(group)
            continue
        try:
            what = f"control group, {setting}"
            yield Limit(what, ["sh", "-c", enter, str(group / "cgroup.procs")], group / peak)
        finally:
            _remove(group)
        return
    scope = ["systemd-run", "--scope", "--quiet", "-p", f"MemoryMax={size}", "-p", "MemorySwapMax=0", "--"]
    if subprocess.run([*scope, "true"], capture_output=True, check=False).returncode == 0:
        yield Limit("scope of systemd, MemoryMax", scope, None)
    else:
        yield Limit("none: measured only", [], None)


def _groups() -> Iterator[tuple[Path, str, str]]:
    """Yield groups below our own that could be made, the file that limits them and that of their peak."""
    root, name = Path("/sys/fs/cgroup"), f"evolve-memory-{os.getpid()}"
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield (
                root / "memory" / path.lstrip("/") / name,
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
            )
        elif not controllers and (root / "cgroup.controllers").exists():
            yield root / path.lstrip("/") / name, "memory.max", "memory.peak"


def _remove(group: Path) -> None:
    for _ in range(50):  # the last process may still be on its way out
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


class Built(NamedTuple):
    """What a build took: seconds, bytes of anonymous memory, and of everything in its group, where known."""

    seconds: float
    anonymous: int
    group: int | None


def build(config: Path, out: Path, limit: Limit) -> Built:
    """Run the whole command, and say how much it took."""
    if limit.peak is not None:
        with contextlib.suppress(OSError):  # version 2 before Linux 6.12 counts on
            limit.peak.write_text("0")
    command = [*limit.before, sys.executable, "-m", "evolve.cli", "build", str(config), str(out)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, stop = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, stop))
    watcher.start()
    _, errors = process.communicate()
    stop.set()
    watcher.join()
    seconds = time.perf_counter() - began
    if process.returncode:
        cause = "killed, out of memory" if process.returncode in (-9, 137) else errors.decode()[-1000:]
        raise SystemExit(f"{config.stem}: the build failed ({process.returncode}): {cause}")
    group = (
        int(limit.peak.read_text(encoding="ascii"))
        if limit.peak is not None and limit.peak.exists()
        else None
    )
    return Built(seconds, peak[0], group)


def _watch(pid: int, peak: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.01):
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            peak[0] = max(peak[0], 1024 * int(status.split("RssAnon:")[1].split()[0]))


def merge_file(folder: Path, method: str, parents: list[Path]) -> Path:
    """Write mergekit's YAML for a method and return its place."""
    base, *experts = parents
    document: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "linear":
        experts = parents
    else:
        document["base_model"] = str(base)
    parameters = METHODS[method]
    document["models"] = [{"model": str(parent), "parameters": parameters} for parent in experts]
    place = folder / f"{method}.yml"
    place.write_text(yaml.safe_dump(document), encoding="utf-8")
    return place


def check(out: Path, parents: list[Path], method: str) -> None:
    """Compare two tensors of a linear merge with their mean in float64."""
    from evolve.weights.reader import open_model

    if method != "linear":
        return
    models, result = [open_model(parent) for parent in parents], open_model(out)
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        rows = [model.tensor(name)[:64].double() for model in models]
        mean = torch.stack(rows).mean(0)
        unit = 2.0**-8 * mean.abs() + 1e-30
        if not bool(((result.tensor(name)[:64].double() - mean).abs() <= unit).all()):
            raise SystemExit(f"{method}: {name} is not the mean of the parents")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """Make the parents, build the merges, and return the document and the rows."""
    rows: list[Row] = []
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="evolve-memory-", dir=options.folder))
    try:
        print(f"making {options.parents} parents of {options.gb:g} GB in {folder}", flush=True)
        (folder / "tiny").mkdir()
        parents = make_parents(folder, options.parents, options.gb)
        tiny = make_parents(folder / "tiny", options.parents, 0)
        sizes = [sum(file.stat().st_size for file in parent.glob("*.safetensors")) for parent in parents]
        with limited(int(options.limit * 1e9)) as limit:
            print(f"limit of {options.limit:g} GB: {limit.what}", flush=True)
            for method in options.methods:
                out = folder / "out"
                # One layer and the ends: the largest tensor is there, the size of the model is not.
                small = build(merge_file(folder / "tiny", method, tiny), folder / "tiny" / "out", limit)
                whole = build(merge_file(folder, method, parents), out, limit)
                check(out, parents, method)
                rows += _rows(method, small, whole)
                shutil.rmtree(out)
                shutil.rmtree(folder / "tiny" / "out")
                print(table(rows[-4:]), flush=True)
        rows.append(Row("each parent, GB", min(sizes) / 1e9))
        rows.append(Row("largest tensor in float32, GB", 4 * VOCAB * WIDTH / 1e9))
        document = {"limit": limit.what, "limit_gb": options.limit, "parents": options.parents}
        return document, rows
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _rows(method: str, small: Built, whole: Built) -> list[Row]:
    rows = [
        Row(f"{method}: the whole command", whole.seconds),
        Row(f"{method}: peak of anonymous memory, GB", whole.anonymous / 1e9),
        Row(f"{method}: the same for a model of one layer, GB", small.anonymous / 1e9),
    ]
    if whole.group is not None:
        rows.append(Row(f"{method}: peak of the group, cached files included, GB", whole.group / 1e9))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of evolve build.")
    parser.add_argument("--gb", type=float, default=3.0, help="size of each parent")
    parser.add_argument("--parents", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.5, help="GB of memory for the build")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room"
    )
    parser.add_argument("--keep", action="store_true", help="keep the parents")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    need = (options.parents + 1.2) * options.gb
    options.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.folder).free / 1e9
    if free < need:
        raise SystemExit(
            f"{options.folder} has {free:.0f} GB free, {need:.0f} are needed: name another --folder"
        )
    document, rows = run(options)
    print(table(rows))
    write(options.json, document, rows)


if __name__ == "__main__":
    main()
