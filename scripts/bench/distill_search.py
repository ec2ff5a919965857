"""Does a search over loss weights, temperature and learning rate find what the best setting by hand is worth?

    python scripts/demo_models.py        # once
    python scripts/bench/distill_search.py [--seeds 5] [--trials 18] [--json FILE]

Three ways get the same number of trials in the space of search_spaces/distill_whitebox.yaml, smaller:
settings as one writes them by hand (three learning rates, three temperatures, two weights of the KL, all
combined), CMA-ES, and as control random search. Each way's winner is the best on the items of the search;
what counts is its score on the holdout, which no way has seen. A seed draws items, training and search anew,
for all ways alike, so differences are paired. At least as good means: the 95 % interval of the mean
difference over the seeds (Student's t) ends above -1 point. Each search is an ordinary run with its folder
below --out: one that is stopped goes on where it was, one that is finished is read.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from report import mean, write

from evolve.score.intervals import student_quantile

SPACE = Path(__file__).resolve().parents[2] / "search_spaces/distill_whitebox.yaml"
WAYS = {"hand": "grid", "search": "cmaes", "random": "random"}
HAND: dict[str, list[float]] = {
    "rate": [3e-4, 1e-3, 3e-3],
    "temperature": [1.0, 2.0, 4.0],
    "weight": [1.0, 4.0],
}
POPULATION = 6
MARGIN = 0.01


def config_of(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the config of a way's search."""
    plain: dict[str, Any] = yaml.safe_load(SPACE.read_text(encoding="utf-8"))
    plain["name"] = f"{way}-{seed}"
    plain["models"] = {name: str(options.demo / Path(path).name) for name, path in plain["models"].items()}
    [stage] = plain["pipeline"]
    block = stage["distill"]
    block["dataset"] |= {"path": str(options.demo / "texts/towns.jsonl"), "max_tokens": options.tokens}
    if way == "hand":
        _by_hand(block)
    score = plain["score"]
    score |= {"backend": "hf", "include_path": str(options.demo / "tasks"), "seed": seed}
    for task in score["tasks"]:
        task["items"] = options.items
    # Seeds are repeated here, and the winner is the search's own choice.
    score["holdout"] = {"items": options.holdout, "top": 1, "seeds": 1}
    plain["search"] = {"sampler": WAYS[way], "trials": options.trials, "population": POPULATION, "seed": seed}
    plain["engine"] = "inline"
    return plain


def _by_hand(block: dict[str, Any]) -> None:
    """Put settings that are listed in place of the ranges."""
    for loss in block["loss_functions"]:
        if loss["function"] == "kl":
            loss |= {name: {"choices": HAND[name]} for name in ("temperature", "weight")}
    # One loss with a teacher is what one writes: the other has no weight.
    block["loss_functions"] = [
        loss for loss in block["loss_functions"] if loss["function"] in ("cross_entropy", "kl")
    ]
    block["training_args"]["learning_rate"] = {"choices": HAND["rate"]}


def searched(way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the winner of a way's search; made now, gone on with, or read."""
    text = yaml.safe_dump(config_of(way, seed, options), sort_keys=False)
    file, folder = options.out / f"{way}-{seed}.yaml", options.out / f"{way}-{seed}"
    done = folder / "report.json"
    if not (done.exists() and file.exists() and file.read_text(encoding="utf-8") == text):
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "evolve.cli", "run", str(file), "--runs", str(options.out)]
        found = subprocess.run([*command, "--display", "none"], capture_output=True, text=True, check=False)
        if found.returncode or not done.exists():
            sys.exit(f"{way}, seed {seed}: {found.stderr[-3000:]}")
    return winner(json.loads(done.read_text(encoding="utf-8")))


def winner(report: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's report says of its best candidate, and of the models that it began with."""
    best = report["best"]
    return {
        "search": best["intervals"]["search"]["value"],
        "holdout": best["intervals"]["holdout"]["value"],
        "params": report["params"],
        "trials": report["trials"],
        "seconds": report["elapsed"],
        "parents": {one["name"]: one["intervals"]["holdout"]["value"] for one in report["parents"]},
    }


def judged(differences: list[float], margin: float = MARGIN) -> str:
    """Return whether differences, one a seed, show a way to be at least as good as another."""
    if len(differences) < 2:
        return "cannot tell from one seed"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = student_quantile(0.95, len(differences) - 1) * error
    low, high = (statistics.mean(differences) + sign * half for sign in (-1, 1))
    if low > -margin:
        return "better" if low > 0 else "at least as good"
    return "worse" if high < 0 else "cannot tell"


def report(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Return the holdout scores of every seed, and the differences between the ways over the seeds."""
    lines = ["| seed | by hand | search | random | base | teacher |", "|---|---|---|---|---|---|"]
    for seed, ways in found.items():
        scores = [f"{ways[way]['holdout']:.3f}" for way in WAYS]
        parents = [f"{ways['hand']['parents'][name]:.3f}" for name in ("base", "towns")]
        lines.append(f"| {seed} | {' | '.join([*scores, *parents])} |")
    lines += ["", "| holdout | difference | verdict at 1 point |", "|---|---|---|"]
    for first, second in (("search", "hand"), ("random", "hand"), ("search", "random")):
        pairs = [ways[first]["holdout"] - ways[second]["holdout"] for ways in found.values()]
        lines.append(f"| {first} - {second} | {mean(pairs)} | {judged(pairs)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    points = math.prod(map(len, HAND.values()))
    parser.add_argument("--demo", type=Path, default=Path("models/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/distill_search"), help="a folder of runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=points, help="of each way; by hand there are no more")
    parser.add_argument("--tokens", type=int, default=24_000, help="of each training")
    parser.add_argument("--items", type=int, default=150, help="of each task, for the search")
    parser.add_argument("--holdout", type=int, default=400, help="items of each task for the comparison")
    parser.add_argument("--json", type=Path, help="all results, for programs")
    options = parser.parse_args()
    if options.trials > points:
        parser.error(f"--trials: by hand there are {points} settings, so at most {points}")
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in range(options.seeds):
        ways: dict[str, dict[str, Any]] = {}
        for way in WAYS:
            ways[way] = searched(way, seed, options)
            one = ways[way]
            print(f"{way}, seed {seed}: holdout {one['holdout']:.3f} ({one['seconds']:.0f} s)", flush=True)
        found[seed] = ways
        write(options.json, {"margin": MARGIN, "trials": options.trials, "results": found}, [])
    print(report(found))


if __name__ == "__main__":
    main()
