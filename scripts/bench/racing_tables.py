"""Record how real candidates of a search answer every item, for the simulator of scripts/bench/racing.py.

    python scripts/bench/racing_tables.py --config search_spaces/demo.yaml --out racing_tables.npz

Candidates are built and scored in full on the items of the search and of the holdout: the baselines, points
drawn evenly over the space, and those of one CMA-ES search from its centre. For every item the table holds
the margin: the log-likelihood of the right answer less that of the best wrong one. An item is right where
the margin is above 0, so the tables hold accuracies of multiple-choice tasks and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.types import Job, Recipe, Scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.engine.evaluator import Evaluator
    from evolve.run import Prepared
    from evolve.space.space import Space

_SEED = 20


class Tables(NamedTuple):
    """What was recorded.

    Attributes:
        genes: Candidates by genes, in units of the ranges: 0 is low, 1 is high.
        margins: Candidates by items.
        baselines: Baselines by items.
        names: Names of the baselines.
        keys: Item keys.
        tasks: Index of each item's task.
        holdout: Whether an item belongs to the holdout.
        seconds: Mean seconds of ``build``, ``load`` and ``score`` of a candidate on the search's items.
    """

    genes: Any
    margins: Any
    baselines: Any
    names: Any
    keys: Any
    tasks: Any
    holdout: Any
    seconds: Any


class Recorder:
    """Scores recipes in full and keeps the margins."""

    def __init__(self, evaluator: Evaluator, tasks: Sequence[str]) -> None:
        self._evaluator = evaluator
        self._tasks = list(tasks)
        self._heard: dict[tuple[str, int], dict[int, float]] = {}
        self._answers: dict[tuple[str, int], int] = {}
        self._listen(evaluator._require_engine().lm)
        self.columns: list[tuple[str, int, bool]] = []
        self.seconds: list[tuple[float, float, float]] = []

    def _listen(self, lm: Any) -> None:
        kind = type(lm)  # the engine may start again with a new object
        inner = kind.loglikelihood

        def loglikelihood(own: Any, requests: Any, *more: Any, **options: Any) -> Any:
            answers = inner(own, requests, *more, **options)
            for request, (value, _) in zip(requests, answers, strict=True):
                task, position, _ = request.metadata
                self._heard.setdefault((task, position), {})[request.idx] = value
                self._answers[task, position] = int(request.doc["answer"])
            return answers

        kind.loglikelihood = loglikelihood

    def margins(self, recipe: Recipe) -> tuple[Any, float]:
        """Return the margins of all items, the search's first, and the accuracy on the search's items."""
        columns: list[tuple[str, int, bool]] = []
        values: list[float] = []
        score = float("nan")
        for split in ("search", "holdout"):
            self._heard.clear()
            outcome = self._evaluator.evaluate(Job(recipe, split))
            if not isinstance(outcome, Scored):
                raise SystemExit(f"a candidate failed: {outcome.message}\n{outcome.log}")
            if split == "search":
                score = outcome.value
                self.seconds.append(tuple(outcome.seconds[part] for part in ("build", "load", "score")))
            for index, task in enumerate(self._tasks):
                for position, (key, right) in enumerate(outcome.tasks[task].items.items()):
                    heard, answer = self._heard[task, position], self._answers[task, position]
                    wrong = max(value for choice, value in heard.items() if choice != answer)
                    margin = heard[answer] - wrong
                    if (margin > 0) != bool(right) and margin != 0:
                        raise SystemExit(f"item {key} of {task}: the margin {margin} and acc {right} differ")
                    columns.append((key, index, split == "holdout"))
                    values.append(margin)
        if self.columns and self.columns != columns:
            raise SystemExit("the items changed between candidates")
        self.columns = columns
        return np.array(values, dtype=np.float32), score


def record(config: Path, overrides: list[str], *, even: int, searched: int) -> Tables:
    """Score ``even`` points drawn over the space and ``searched`` points of a CMA-ES search."""
    from evolve.config.load import load
    from evolve.engine.evaluator import Evaluator
    from evolve.run import evaluator_spec, prepare
    from evolve.space.baselines import baselines
    from evolve.space.space import derive

    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(load(config, ["engine.cpus=1", *overrides]), runs=Path(folder))
        space = derive(prepared.loaded)
        evaluator = Evaluator(evaluator_spec(prepared))
        evaluator.start()
        recorder = Recorder(evaluator, [task.task for task in prepared.score.tasks])
        bases = baselines(prepared.loaded, prepared.contents)
        base_rows = [recorder.margins(recipe)[0] for recipe in bases.values()]
        genes, rows = _candidates(recorder, space, prepared, even, searched)
        evaluator.close()
    keys, tasks, holdout = zip(*recorder.columns, strict=True)
    return Tables(
        np.array(genes),
        np.array(rows),
        np.array(base_rows),
        np.array(list(bases)),
        np.array(keys),
        np.array(tasks),
        np.array(holdout),
        np.median(np.array(recorder.seconds), axis=0),
    )


def _candidates(
    recorder: Recorder, space: Space, prepared: Prepared, even: int, searched: int
) -> tuple[list[Any], list[Any]]:
    from cmaes import CMA

    size = len(space.genes)
    genes: list[Any] = []
    rows: list[Any] = []
    began = time.monotonic()

    def score(point: Any) -> float:
        values = {
            gene.name: gene.low + float(x) * (gene.high - gene.low)
            for gene, x in zip(space.genes, point, strict=True)
        }
        row, value = recorder.margins(space.recipe(values, prepared.contents))
        genes.append(np.array(point))
        rows.append(row)
        print(f"{len(rows)} candidates, {time.monotonic() - began:.0f} s, {value:.4f}", flush=True)
        return value

    draw = np.random.default_rng(_SEED)
    strata = (np.argsort(draw.random((size, even)), axis=1).T + draw.random((even, size))) / max(1, even)
    for point in strata:
        score(point)
    optimizer = CMA(
        mean=np.full(size, 0.5),
        sigma=1 / 6,
        bounds=np.tile([0.0, 1.0], (size, 1)),
        seed=_SEED,
        population_size=prepared.population,
    )
    while len(rows) < even + searched:
        points = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([(point, -score(point)) for point in points])
    return genes, rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("search_spaces/demo.yaml"))
    parser.add_argument("--even", type=int, default=120, help="points drawn evenly over the space")
    parser.add_argument("--searched", type=int, default=100, help="points of a CMA-ES search")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    given = parser.parse_args()
    tables = record(given.config, given.overrides, even=given.even, searched=given.searched)
    np.savez_compressed(given.out, **tables._asdict())
    print(f"{given.out}: {tables.margins.shape[0]} candidates, {tables.margins.shape[1]} items")


if __name__ == "__main__":
    main()
