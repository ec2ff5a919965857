"""Item-evaluations that racing, growing item numbers and the estimator save, over many simulated searches.

    python scripts/bench/racing_tables.py --out racing_tables.npz     # once: real candidates, item by item
    python scripts/bench/racing.py --tables racing_tables.npz [--seeds 20] [--json FILE]

A search is simulated at points that were never built, so the recorded margins are interpolated over the
genes (kernel ridge regression, all items with the same kernel), and an item is right where the margin is
above 0. The script first says how good that is, on candidates left out. The rules are those of evolve itself:
the class ``Race`` asks a simulated evaluator. CMA-ES is the library that Optuna calls, with Optuna's
settings.

What this can show: how the rules behave on items that agree and disagree between candidates as the demo's
do. What it cannot: anything about other tasks, about noise of an engine (answers repeat exactly, as they do
in the runs), or about the landscape finer than the interpolation.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from racing_world import World, on_the_tables
from report import machine, versions

from evolve.config.schema import SearchConfig
from evolve.score.racing import IN, OPEN, OUT
from evolve.search.base import Standing, Told
from evolve.search.race import Entrant, Race
from evolve.search.table import Table
from evolve.types import Job, Recipe, Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_DRAWS = 2000
_MARGIN = 0.01
"""What is no loss: one point."""
RACING = {"first": 0.1, "growth": 2.0, "error": 0.1}
WITHIN = {"first": 0.5, "growth": 2.0, "error": 0.2}
GROWTH = {"first": 0.05, "growth": 1.5, "error": 0.35}
ESTIMATOR = {"anchors": 0.1, "dimensions": 2, "correction": 0.5}
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "racing": {"racing": RACING},
    "racing, discriminative": {"racing": {**RACING, "order": "discriminative"}},
    "items_growth": {"items_growth": GROWTH},
    "estimator": {"estimator": ESTIMATOR},
    "items_growth + racing": {"racing": WITHIN, "items_growth": GROWTH},
    "items_growth + estimator": {"items_growth": GROWTH, "estimator": ESTIMATOR},
    "few items": {
        "racing": {"first": 1.0, "error": 0.3},
        "items_growth": {"first": 0.03, "growth": 1.5, "error": 0.4},
    },
    "too few items": {
        "racing": {"first": 0.5, "error": 0.3},
        "items_growth": {"first": 0.03, "growth": 1.5, "error": 0.43},
    },
    "all three": {"racing": WITHIN, "items_growth": GROWTH, "estimator": ESTIMATOR},
}
_LONGER = 3
"""An arm may have this many times the candidates of the full search, and never more items than it."""


class Trace(NamedTuple):
    """One simulated search, generation by generation."""

    items: list[int]
    loads: list[int]
    trials: list[int]
    search: list[float]
    holdout: list[float]
    shares: list[float]


class Watched(Race):
    """A race that counts who was settled, and who of them on the wrong side: the truth is on all items."""

    truth: Callable[[str], float]
    settled = wrong = entrants = 0

    def _eliminate(self, entrants: Sequence[Entrant], standing: Standing, items: int) -> None:
        super()._eliminate(entrants, standing, items)
        scores = [self.truth(entrant.recipe.hash) for entrant in entrants]
        ranked = sorted(scores, reverse=True)
        cut = len(ranked) // 2
        self.entrants += len(entrants)
        for entrant, score in zip(entrants, scores, strict=True):
            self.settled += entrant.verdict != OPEN
            self.wrong += entrant.verdict == IN and score < ranked[cut - 1]
            self.wrong += entrant.verdict == OUT and score > ranked[cut]


class Simulation:
    """One search of one arm."""

    def __init__(self, world: World, arm: Mapping[str, Any], seed: int, population: int) -> None:
        from cmaes import CMA

        self._world, self._population = world, population
        self._config = SearchConfig.model_validate({"seed": seed, **arm})
        racing = self._config.racing
        order = "random" if racing is None else racing.order
        self._table = Table(world.baselines, world.score, seed=seed, discriminative=order == "discriminative")
        self.race = Watched(
            self._table,
            self._config,
            population=population,
            settle=self._settle,
            store=lambda recipe, whole: None,
        )
        self.race.truth = lambda name: float(self._right[name][world.search].mean())
        self._optimizer = CMA(
            mean=np.full(world.size, 0.5),
            sigma=1 / 6,
            bounds=np.tile([0.0, 1.0], (world.size, 1)),
            seed=seed,
            population_size=population,
        )
        self._right: dict[str, Any] = {}
        self._told: list[Told] = []
        self._scores: dict[str, float] = {}
        self._asked = self._loads = 0

    def _recipe(self, point: Any) -> Recipe:
        recipe = Recipe.make({}, [{"point": {"x": [float(x) for x in point]}}])
        if recipe.hash not in self._right:
            self._right[recipe.hash] = self._world.surrogate.margins(point)[0] > 0
        return recipe

    def _settle(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Scored]]:
        for job in jobs:
            items = [(task, key) for task, keys in job.items for key in keys] or self._world.items
            right = self._right[job.recipe.hash][self._world.search]
            self._asked += len(items)
            self._loads += 1
            yield job, self._world.outcome([right[self._world.place[item]] for item in items], items)

    def run(self, most_items: int, most_trials: int) -> Trace:
        """Search until a budget is spent."""
        trace = Trace([], [], [], [], [], [])
        centre = self._recipe(np.full(self._world.size, 0.5))
        for job, outcome in self._settle([Job(centre)]):
            self._table.add(job.recipe.hash, outcome.tasks, {})
        self._note(0, centre, 0.0)
        self._mark(trace)
        items: int | None = None
        while self._asked < most_items and len(self._told) < most_trials:
            points = [self._optimizer.ask() for _ in range(self._population)]
            recipes = [self._recipe(point) for point in points]
            best = max(self._scores, key=self._scores.__getitem__)
            past = tuple(told.recipe for told in self._told)
            last = tuple(self._told[-self._population :]) if len(self._told) > 1 else ()
            standing = Standing((), items, False, (), past, last, best)
            items = self.race.items(standing)
            verdicts = self.race.run(recipes, replace(standing, items=items))
            values = [verdicts[recipe.hash].value for recipe in recipes]
            self._optimizer.tell([(p, -float(v or 0.0)) for p, v in zip(points, values, strict=True)])
            for recipe, value in zip(recipes, values, strict=True):
                self._note(len(self._told), recipe, float(value or 0.0))
            self._mark(trace)
        count = max(1, self.race.entrants)
        trace.shares.extend((self.race.settled / count, self.race.wrong / count))
        return trace

    def _note(self, number: int, recipe: Recipe, value: float) -> None:
        self._told.append(Told(number, value, recipe.hash))
        whole = self._table.whole(recipe.hash)
        if whole is not None:
            self._scores[recipe.hash] = whole.value

    def _mark(self, trace: Trace) -> None:
        best = max(self._scores, key=self._scores.__getitem__)
        trace.items.append(self._asked)
        trace.loads.append(self._loads)
        trace.trials.append(len(self._told))
        trace.search.append(self._scores[best])
        trace.holdout.append(float(self._right[best][self._world.holdout].mean()))


class Costs(NamedTuple):
    """Seconds of one load of a candidate (build and swap) and of one item."""

    load: float
    item: float


def simulate(
    world: World, arms: Mapping[str, Any], seeds: int, population: int, trials: int
) -> dict[str, list[Trace]]:
    """Run every arm with every seed. ``full`` gets ``trials``; the others may spend as many items as it."""
    found: dict[str, list[Trace]] = {}
    budget = len(world.items) * (1 + trials // population * population)
    for name, arm in arms.items():
        most = trials if not arm else _LONGER * trials
        found[name] = [Simulation(world, arm, seed, population).run(budget, most) for seed in range(seeds)]
        print(f"  {name}: simulated", flush=True)
    return found


def reached(traces: Sequence[Trace], target: float, spent: str, costs: Costs | None = None) -> float:
    """Return what the mean search of ``traces`` has spent when its score is at ``target``; inf: never."""

    def bill(trace: Trace) -> Any:
        items = np.array(trace.items, dtype=float)
        return items if costs is None else items * costs.item + np.array(trace.loads) * costs.load

    bills = [bill(trace) for trace in traces]
    grid = np.unique(np.concatenate(bills))
    total = np.zeros(len(grid))
    for own, trace in zip(bills, traces, strict=True):
        place = np.searchsorted(own, grid, side="right") - 1
        total += np.where(place >= 0, np.array(getattr(trace, spent))[place.clip(min=0)], 0.0)
    above = np.flatnonzero(total / len(traces) >= target - 1e-12)
    return float(grid[above[0]]) if len(above) else float("inf")


def at_trials(trace: Trace, trials: int, what: str) -> float:
    """Return the score when a search has had ``trials`` candidates."""
    place = int(np.searchsorted(np.array(trace.trials), trials, side="right")) - 1
    return float(getattr(trace, what)[place])


def summary(
    traces: Mapping[str, list[Trace]], trials: int, costs: Mapping[str, Costs]
) -> list[dict[str, Any]]:
    """Compare every arm with the full one, with intervals over seeds (bootstrap, seeds drawn together)."""
    full = traces["full"]
    draw = np.random.default_rng(0)
    picks = [np.arange(len(full)), *draw.integers(0, len(full), (_DRAWS // 10, len(full)))]
    rows = []
    for name, own in traces.items():
        row: dict[str, Any] = {"arm": name}
        ratios: dict[str, list[float]] = {}
        for pick in picks:
            theirs, ours = [full[place] for place in pick], [own[place] for place in pick]
            for what, margin in (("search", 0.0), ("holdout", _MARGIN)):
                target = float(np.mean([getattr(trace, what)[-1] for trace in theirs])) - margin
                for kind, cost in {"items": None, **costs}.items():
                    base = reached(theirs, target, what, cost)
                    ratios.setdefault(f"{kind} saved, {what}", []).append(
                        base / reached(ours, target, what, cost)
                    )
        for kind, found in ratios.items():
            row[kind] = [found[0], *map(float, np.quantile(found[1:], [0.025, 0.975]))]
        row["items per candidate"] = float(
            np.mean([_at(trace, trials, "items") / _at(trace, trials, "trials") for trace in own])
        )
        row["loads per candidate"] = float(
            np.mean([_at(trace, trials, "loads") / _at(trace, trials, "trials") for trace in own])
        )
        for what in ("search", "holdout"):
            gaps = 100 * np.array(
                [
                    at_trials(a, trials, what) - at_trials(b, trials, what)
                    for a, b in zip(own, full, strict=True)
                ]
            )
            row[f"{what} at {trials} trials"] = [float(gaps.mean()), *_mean_interval(gaps)]
        gaps = 100 * np.array([a.holdout[-1] - b.holdout[-1] for a, b in zip(own, full, strict=True)])
        row["saved at equal trials"] = full[0].items[-1] / float(
            np.mean([_at(trace, trials, "items") for trace in own])
        )
        settled, wrong = np.mean([trace.shares for trace in own], axis=0)
        row["settled"], row["wrongly"] = f"{settled:.3f}", f"{wrong:.4f}"
        row["holdout at the end"] = [float(gaps.mean()), *_mean_interval(gaps)]
        rows.append(row)
    return rows


def _at(trace: Trace, trials: int, what: str) -> float:
    return at_trials(trace, trials, what)


def _mean_interval(values: Any) -> list[float]:
    draw = np.random.default_rng(1)
    means = values[draw.integers(0, len(values), (_DRAWS, len(values)))].mean(axis=1)
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=101, help="candidates of the full search")
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument("--arms", nargs="*", help="names of arms; absent: all")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    world = World(np.load(given.tables))
    print("the surrogate, on candidates left out:")
    for what, value in world.quality.items():
        print(f"  {what}: {value:.3f}")
    on_the_tables(np.load(given.tables))
    chosen = {name: arm for name, arm in ARMS.items() if not given.arms or name in ("full", *given.arms)}
    traces = simulate(world, chosen, given.seeds, given.population, given.trials)
    demo = Costs(world.seconds["build"] + world.seconds["load"], world.seconds["score"] / len(world.items))
    rows = summary(
        traces, given.trials, {"seconds": demo, "seconds, slow load": Costs(40 * demo.item, demo.item)}
    )
    show(rows)
    if given.json:
        data = {"machine": machine(), "versions": versions(), "surrogate": world.quality, "rows": rows}
        data["traces"] = {name: [trace._asdict() for trace in found] for name, found in traces.items()}
        given.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows as a Markdown table."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(_cell(name, row[name]) for name in names) + " |")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, list):
        # A saving of 0 is a score that was never reached.
        never = " saved, " in name
        return "{} [{}, {}]".format(*("never" if never and not part else f"{part:.2f}" for part in value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
