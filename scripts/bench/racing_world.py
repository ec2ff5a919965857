"""The world of scripts/bench/racing.py: recorded candidates, and what lies between them.

What needs no interpolation is measured on the recorded candidates themselves: who is settled, and how
estimates follow scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.config.schema import ScoreConfig
from evolve.score import response
from evolve.score.racing import IN, OPEN, OUT, Strata, looks, settle
from evolve.types import Scored, TaskScore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Surrogate:
    """Margins of all items at any point, interpolated between recorded candidates."""

    def __init__(self, genes: Any, margins: Any, *, width: float, ridge: float) -> None:
        self._genes, self._width = genes, width
        self._mean = margins.mean(axis=0)
        kernel = self._kernel(genes) + ridge * np.eye(len(genes))
        self._weights = np.linalg.solve(kernel, margins - self._mean)

    def _kernel(self, points: Any) -> Any:
        distance = ((points[:, None, :] - self._genes[None, :, :]) ** 2).sum(axis=2)
        return np.exp(-distance / (2 * self._width**2))

    def margins(self, points: Any) -> Any:
        """Return points by items."""
        return self._mean + self._kernel(np.atleast_2d(points)) @ self._weights


def fitted(genes: Any, margins: Any) -> tuple[Surrogate, dict[str, float]]:
    """Choose width and ridge by five-fold validation; return the surrogate and how good it is."""
    folds = np.random.default_rng(0).permutation(len(genes)) % 5
    best: tuple[float, float, float, dict[str, float]] | None = None
    for width in (0.5, 0.8, 1.2, 2.0):
        for ridge in (1e-3, 1e-2, 1e-1):
            guess = np.empty_like(margins)
            for fold in range(5):
                rest = folds != fold
                model = Surrogate(genes[rest], margins[rest], width=width, ridge=ridge)
                guess[~rest] = model.margins(genes[~rest])
            found = _quality(margins > 0, guess > 0)
            if best is None or found["agreement"] > best[3]["agreement"]:
                best = width, ridge, found["agreement"], found
    assert best is not None
    width, ridge, _, quality = best
    quality = {**quality, "width": width, "ridge": ridge}
    return Surrogate(genes, margins, width=width, ridge=ridge), quality


def _quality(right: Any, guess: Any) -> dict[str, float]:
    scores, guessed = right.mean(axis=1), guess.mean(axis=1)
    draw = np.random.default_rng(1)
    pairs = draw.integers(0, len(right), (2000, 2))
    apart = (right[pairs[:, 0]] != right[pairs[:, 1]]).mean()
    apart_guess = (guess[pairs[:, 0]] != guess[pairs[:, 1]]).mean()
    return {
        "agreement": float((right == guess).mean()),
        "r2 of scores": float(1 - ((scores - guessed) ** 2).sum() / ((scores - scores.mean()) ** 2).sum()),
        "bias of scores": float((guessed - scores).mean()),
        "items on which a pair differs": float(apart),
        "the same, interpolated": float(apart_guess),
    }


class World:
    """Real tables turned into a landscape."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        search = ~tables["holdout"]
        self.surrogate, self.quality = fitted(tables["genes"], tables["margins"].astype(np.float64))
        self.size = tables["genes"].shape[1]
        self.search, self.holdout = np.flatnonzero(search), np.flatnonzero(~search)
        names = [f"t{index}" for index in range(int(tables["tasks"].max()) + 1)]
        self.score = ScoreConfig.model_validate({"tasks": [{"task": n, "metric": "acc"} for n in names]})
        self.items = [(names[tables["tasks"][place]], str(tables["keys"][place])) for place in self.search]
        self.place = {item: place for place, item in enumerate(self.items)}
        self.baselines = [self.outcome(row[self.search] > 0, self.items) for row in tables["baselines"]]
        self.seconds = dict(zip(("build", "load", "score"), map(float, tables["seconds"]), strict=True))

    def outcome(self, right: Any, items: Sequence[tuple[str, str]]) -> Scored:
        """Return the outcome of a candidate on some items."""
        found: dict[str, dict[str, float]] = {}
        for (task, key), value in zip(items, right, strict=True):
            found.setdefault(task, {})[key] = float(value)
        tasks = {
            task: TaskScore("acc", float(np.mean(list(values.values()))), 0.0, True, values)
            for task, values in found.items()
        }
        return Scored(0.0, 0.0, tasks)


def on_the_tables(tables: Mapping[str, Any]) -> None:
    """Print what needs no surrogate: settled candidates, and the estimator's errors, on recorded ones."""
    right = (tables["margins"] > 0)[:, ~tables["holdout"]].astype(np.float64)
    draw = np.random.default_rng(4)
    right = right[:, draw.permutation(right.shape[1])]
    items = Strata(np.array([1.0]), np.zeros(right.shape[1], dtype=np.int64))
    searched = len(right) - len(right) // 3  # the first candidates of the CMA-ES search come near here
    print("groups of ten recorded candidates, settled before all items were asked (first 0.1, growth 2):")
    for name, pool in (("even points", right[:searched]), ("searched points", right[searched:])):
        for error in (0.05, 0.1, 0.2, 0.3):
            settled, wrong, asked = _settled(pool, items, error, draw)
            print(f"  {name}, {error}: settled {settled:.3f}, wrongly {wrong:.4f}, items {asked:.2f}")
    print("correlation of estimated and true scores within ten searched candidates, 90 items asked:")
    base = tables["baselines"][:, ~tables["holdout"]] > 0
    for known in (0, 15, 30):
        print(
            f"  after {known} candidates: " + _correlations(right, base.astype(np.float64), searched, known)
        )


def _settled(pool: Any, items: Strata, error: float, draw: Any) -> tuple[float, float, float]:
    sizes = looks(pool.shape[1], 0.1, 2.0, least=2)
    settled = wrong = asked = 0.0
    for _ in range(200):
        table = pool[draw.choice(len(pool), 10, replace=False)]
        verdicts, last = [OPEN] * 10, [0] * 10
        for size in sizes:
            last = [size if v == OPEN else n for v, n in zip(verdicts, last, strict=True)]
            if size < pool.shape[1]:
                verdicts = settle([row[:size] for row in table], verdicts, items, chosen=5, error=error)
        asked += sum(last)
        truth = np.sort(table.mean(axis=1))
        for row, verdict in zip(table, verdicts, strict=True):
            settled += verdict != OPEN
            wrong += (verdict == IN and row.mean() < truth[5]) or (verdict == OUT and row.mean() > truth[4])
    return settled / 2000, wrong / max(1.0, settled), asked / 2000 / pool.shape[1]


def _correlations(right: Any, baselines: Any, searched: int, known: int) -> str:
    """Return how estimates of ten candidates follow their scores, where others answered 90 items before."""
    found: dict[str, list[float]] = {}
    for start in range(searched, len(right) - known - 9, 5):
        for shift in range(4):
            order = np.random.default_rng(shift).permutation(right.shape[1])
            rows = right[start : start + known + 10][:, order]
            seen = rows.copy()
            seen[:, 90:] = np.nan
            predicted = response.fit(np.vstack([baselines[:, order], seen]), dimensions=2).predict()[-10:]
            weights, asked = np.full(rows.shape[1], 1 / rows.shape[1]), np.full(90, 1 / 90)
            truth = rows[-10:].mean(axis=1)
            guesses = {"plain mean": rows[-10:, :90].mean(axis=1)}
            for correction in (0.0, 0.5, 1.0):
                guesses[f"correction {correction}"] = np.array(
                    [
                        response.estimate(row[:90], guess, weights, asked, correction=correction)
                        for row, guess in zip(rows[-10:], predicted, strict=True)
                    ]
                )
            for name, guess in guesses.items():
                found.setdefault(name, []).append(float(np.corrcoef(guess, truth)[0, 1]))
    return ", ".join(f"{name} {np.mean(values):.2f}" for name, values in found.items())
