"""What one candidate costs, part by part, beside the same work done by mergekit and lm-eval.

    python scripts/bench/candidate.py --config search_spaces/demo.yaml [--pairs 3] [--json FILE]

Ours: a search asks for a recipe, builds it, streams it into the running engine, scores and records it. The
peers': mergekit-yaml writes the same recipe as a folder (.venv-mergekit, made by
scripts/oracle/mergekit_env.sh), and lm-eval in a fresh process reads it with vLLM and scores the same items.
The two take turns. Both get one thread and float32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import Row, table, write
from spy import Spy, cpu_seconds

from evolve.errors import UserError
from evolve.types import Job, Scored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.engine.evaluator import Evaluator
    from evolve.run import Prepared
    from evolve.search.study_searcher import StudySearcher
    from evolve.space.space import Space
    from evolve.types import Recipe

ROOT = Path(__file__).resolve().parents[2]
_TARGET = 10.0
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Search:
    """A search of ours, its engine running."""

    prepared: Prepared
    space: Space
    searcher: StudySearcher
    evaluator: Evaluator
    spy: Spy
    once: dict[str, float]

    def candidate(self) -> tuple[Recipe, dict[str, float], Scored]:
        """Ask for, score and record one candidate."""
        began, worked = time.perf_counter(), cpu_seconds()
        [proposal] = self.searcher.round(1)
        recipe = self.space.recipe(proposal.values, self.prepared.contents)
        asked = time.perf_counter()
        self.spy.clear()
        job = Job(recipe)
        outcome = self.evaluator.evaluate(job)
        if not isinstance(outcome, Scored):
            raise SystemExit(f"the candidate failed: {outcome.message}\n{outcome.log}")
        self.prepared.folder.record(job, outcome, score_key=self.prepared.score_key, attempts=1)
        self.searcher.tell(proposal.number, outcome.value, recipe=recipe.hash)
        seconds = {
            "total": time.perf_counter() - began,
            "cpu": cpu_seconds() - worked,
            "ask": asked - began,
            "build": outcome.seconds["build"],
            "load": outcome.seconds["load"],
            "calls": self.spy.forward,
            "prompts": float(len(self.spy.asked)),
        }
        seconds["bare"], seconds["bare cpu"] = self.spy.bare()
        return recipe, seconds, outcome


def open_search(config: Path, folder: Path, history: int, overrides: list[str]) -> Search:
    """Prepare a search in a temporary folder and start its evaluator, timing what is paid once."""
    from evolve.config.load import load
    from evolve.engine.evaluator import Evaluator
    from evolve.registry import SAMPLERS
    from evolve.run import evaluator_spec, prepare, study_name
    from evolve.score.engines.vllm_lm import lm_class
    from evolve.search.study_searcher import StudySearcher
    from evolve.space.space import derive
    from evolve.store.study import open_study

    once: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        once[name], clock = now - clock, now

    fixed = ["score.dtype=float32", "score.backend=vllm", "engine.cpus=1", *overrides]
    loaded = load(config, fixed)
    spy = Spy(lm_class())
    lap("imports")
    prepared = prepare(loaded, runs=folder)
    lap("checks, content hashes of the parents, tasks")
    space, search = derive(loaded), loaded.config.search
    searcher = StudySearcher(
        open_study(prepared.folder, None, study_name(prepared)),
        space.genes,
        SAMPLERS.load(search.sampler),
        population=prepared.population,
        seed=search.seed,
        centre=space.centre(),
    )
    fill(searcher, space, prepared, history)
    clock = time.perf_counter()
    evaluator = Evaluator(evaluator_spec(prepared))
    evaluator.start()
    lap("evaluator: parents mapped, tasks, engine start")
    once["of that, the engine"] = _engine_seconds(prepared, once)
    return Search(prepared, space, searcher, evaluator, spy, once)


def _engine_seconds(prepared: Prepared, once: Mapping[str, float]) -> float:
    """Return what the evaluator's start took besides mapping parents and loading tasks, done once more."""
    from evolve.score.scorer import Scorer
    from evolve.weights.reader import open_model

    began = time.perf_counter()
    for parent in prepared.parents.values():
        open_model(parent.path)
    Scorer(prepared.score).prepare()
    return once["evaluator: parents mapped, tasks, engine start"] - (time.perf_counter() - began)


def fill(searcher: StudySearcher, space: Space, prepared: Prepared, history: int) -> None:
    """Give the study finished trials of made-up values: asking costs more the more there are."""
    for _ in range(history):
        [proposal] = searcher.round(1)
        value = -sum(proposal.values.values())
        recipe = space.recipe(proposal.values, prepared.contents)
        searcher.tell(proposal.number, value, recipe=recipe.hash)


class Peers:
    """mergekit and lm-eval, with the environment that this process started with."""

    def __init__(self, prepared: Prepared, environment: Mapping[str, str], folder: Path, venv: Path) -> None:
        self._prepared = prepared
        self._environment = {**environment, **_QUIET}
        self._folder = folder
        self._mergekit = venv / "bin" / "mergekit-yaml"
        self._items = positions(prepared)

    def candidate(self, recipe: Recipe, number: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Do the work of one candidate; return its seconds and lm-eval's results."""
        from evolve.export.mergekit import mergekit_yaml

        place = self._folder / str(number)
        place.mkdir()
        config, model, job, out = (place / name for name in ("merge.yaml", "model", "job.json", "out.json"))
        config.write_text(mergekit_yaml(recipe, self._prepared.parents), encoding="utf-8")
        job.write_text(json.dumps(self._job(model, out)), encoding="utf-8")
        began, worked = time.perf_counter(), _children_cpu()
        self._run([str(self._mergekit), str(config), str(model)], Path.cwd())
        merged, worked = time.perf_counter(), _children_cpu() - worked
        where = Path(self._prepared.score.include_path or Path.cwd())
        self._run([sys.executable, str(Path(__file__).with_name("peer_eval.py")), str(job)], where)
        written = json.loads(out.read_text(encoding="utf-8"))
        marks = written["marks"]
        # The end of the process is not counted: it would be the replay's, too.
        seconds = {
            "total": marks["evaluated"] - began,
            "build": merged - began,
            "imports": marks["imported"] - merged,
            "catalog": marks["catalog"] - marks["imported"],
            "load": marks["ready"] - marks["catalog"],
            "calls": written["forward"],
            "bare": written["bare"][0],
            "cpu": worked + written["cpu"],
            "bare cpu": written["bare"][1],
            "prompts": float(written["prompts"]),
        }
        return seconds, written["results"]

    def _job(self, model: Path, out: Path) -> dict[str, Any]:
        score = self._prepared.score
        arguments = {
            "pretrained": str(model),
            "dtype": "float32",
            "seed": score.seed,
            "enforce_eager": True,
            "max_model_len": score.max_length,
            **score.engine_args,
        }
        return {
            "include_path": score.include_path,
            "out": str(out),
            "evaluate": {
                "model_args": {key: value for key, value in arguments.items() if value is not None},
                "tasks": [task.task for task in score.tasks],
                "samples": self._items,
                "batch_size": "auto",
                "apply_chat_template": score.apply_chat_template,
                "system_instruction": score.system_instruction,
                "bootstrap_iters": 0,
            },
        }

    def _run(self, command: list[str], where: Path) -> None:
        done = subprocess.run(
            command, cwd=where, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def positions(prepared: Prepared) -> dict[str, list[int]]:
    """Return where the search's items are in each task, as lm-eval counts: sorted, or it mislabels them.

    Raises:
        UserError: A task has few-shot examples, which lm-eval would draw in another way.
    """
    from evolve.score.items import item_key
    from evolve.score.tasks import load_tasks

    found = {}
    for loaded in load_tasks(prepared.score)[0]:
        if loaded.shots:
            raise UserError(f"task {loaded.config.task!r}: only zero-shot tasks can be compared")
        wanted = {item.key for item in loaded.sets["search"]}
        first: dict[str, int] = {}
        for position, doc in enumerate(loaded.task.eval_docs):
            first.setdefault(item_key(doc), position)
        found[loaded.config.task] = sorted(first[key] for key in wanted)
    return found


def copy_seconds(prepared: Prepared) -> float:
    """Return the time to read every parent once from memory and write one model: no merge is faster."""
    import torch

    sizes = [
        sum(file.stat().st_size for file in Path(parent.path).glob("*.safetensors"))
        for parent in prepared.parents.values()
    ]
    parents = [torch.ones(size // 4) for size in sizes]
    out = torch.empty_like(parents[0])
    times = []
    for _ in range(3):
        began = time.perf_counter()
        out.copy_(parents[0])
        for parent in parents[1:]:
            parent.sum()
        times.append(time.perf_counter() - began)
    return min(times)


def summary(ours: list[dict[str, float]], peers: list[dict[str, float]], copying: float) -> list[Row]:
    """Return the medians over the pairs."""

    def median(pairs: list[dict[str, float]], value: Any) -> float:
        return float(statistics.median(value(seconds) for seconds in pairs))

    def part(name: str) -> tuple[float, float]:
        return median(ours, lambda s: s[name]), median(peers, lambda s: s[name])

    def outside(s: dict[str, float]) -> float:
        return s["total"] - s["bare"]

    def rest(s: dict[str, float]) -> float:
        known = ("calls", "ask", "build", "imports", "catalog", "load")
        return s["total"] - sum(s.get(name, 0.0) for name in known)

    bare = part("bare")
    return [
        Row("ask", median(ours, lambda s: s["ask"])),
        Row("build (peer: mergekit writes a folder)", *part("build"), copying),
        Row("start of a process, imports", None, median(peers, lambda s: s["imports"])),
        Row("lm-eval's catalog of tasks", None, median(peers, lambda s: s["catalog"])),
        Row("load into the engine (peer: engine start)", *part("load")),
        Row("forward passes, bare", *bare),
        Row("everything else, generate calls left out", median(ours, rest), median(peers, rest)),
        Row("one candidate", *part("total"), bare[0]),
        Row("one candidate outside bare forward passes", median(ours, outside), median(peers, outside)),
        Row(
            "one candidate outside its own generate calls",
            median(ours, lambda s: s["total"] - s["calls"]),
            median(peers, lambda s: s["total"] - s["calls"]),
        ),
        Row(
            "the same in CPU seconds: all minus bare",
            median(ours, lambda s: s["cpu"] - s["bare cpu"]),
            median(peers, lambda s: s["cpu"] - s["bare cpu"]),
        ),
    ]


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Run the pairs; return the rows and what the JSON file holds besides."""
    environment = dict(os.environ)
    os.environ.update(_QUIET)
    (folder / "peers").mkdir()
    search = open_search(options.config, folder / "runs", options.history, options.override)
    peers = Peers(search.prepared, environment, folder / "peers", options.mergekit_venv)
    _, warm, _ = search.candidate()
    search.once["first candidate"] = warm["total"]
    ours, theirs, scores = [], [], []
    for number in range(options.pairs):
        recipe, seconds, outcome = search.candidate()
        their_seconds, results = peers.candidate(recipe, number)
        ours.append(seconds)
        theirs.append(their_seconds)
        scores.append(compared(search.prepared, outcome, results))
        print(f"pair {number + 1}: ours {seconds['total']:.2f} s, peers {their_seconds['total']:.2f} s")
    rows = summary(ours, theirs, copy_seconds(search.prepared))
    rows += [Row(f"once per search: {name}", value) for name, value in search.once.items()]
    search.evaluator.close()
    return rows, {
        "benchmark": "candidate",
        "config": options.config.name,
        "sampler": search.prepared.loaded.config.search.sampler,
        "genes": len(search.space.genes),
        "history": options.history,
        "target": {"figure": "one candidate outside bare forward passes", "ratio": _TARGET},
        "load_average": os.getloadavg(),
        "pairs": [{"ours": a, "peer": b, "scores": c} for a, b, c in zip(ours, theirs, scores, strict=True)],
    }


def compared(prepared: Prepared, outcome: Scored, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return task to both scores: they show that both did the same work."""
    found = {}
    for task in prepared.score.tasks:
        wanted = task.metric.partition(",")[0]
        theirs = [value for key, value in results[task.task].items() if str(key).partition(",")[0] == wanted]
        found[task.task] = {"ours": outcome.tasks[task.task].value, "peer": theirs[0] if theirs else None}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a search space")
    parser.add_argument("--pairs", type=int, default=3, help="times that each side runs (default 3)")
    parser.add_argument("--history", type=int, default=50, help="finished trials in the study (default 50)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--mergekit-venv", type=Path, default=ROOT / ".venv-mergekit")
    parser.add_argument("override", nargs="*", help="key.path=value, as of evolve run")
    options = parser.parse_args()
    if not (options.mergekit_venv / "bin" / "mergekit-yaml").exists():
        raise SystemExit(f"{options.mergekit_venv}: no mergekit; make it with scripts/oracle/mergekit_env.sh")
    with tempfile.TemporaryDirectory(prefix="evolve-bench-") as folder:
        try:
            rows, document = measure(options, Path(folder))
        except UserError as error:
            raise SystemExit(str(error)) from error
    print(table(rows))
    for number, pair in enumerate(document["pairs"], 1):
        both = (f"{task} {s['ours']:.4f} / {s['peer']:.4f}" for task, s in pair["scores"].items())
        print(f"scores of pair {number}, ours / peer: " + ", ".join(both))
    write(options.json, document, rows)


if __name__ == "__main__":
    main()
