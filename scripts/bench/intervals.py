"""How often do the intervals of a report hold the truth? Simulated, with models whose true skill is known.

    python scripts/bench/intervals.py --rounds 10000

prints one line a case: the share of nominal 95 % intervals that hold the truth. The error of such a share
over 10,000 rounds is 0.2 points. docs/results.md has the numbers.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evolve.config.schema import ScoreConfig
from evolve.score.choice import choose, half
from evolve.score.intervals import Interval, paired_interval, task_interval
from evolve.score.statistics import compare, interval, kept
from evolve.types import TaskScore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]


class Case(NamedTuple):
    """A kind of interval in one situation.

    Attributes:
        name: What the table calls it.
        draw: One round: whether the interval held the truth.
        share: Of the rounds that it gets; slow ones get fewer.
    """

    name: str
    draw: Callable[[np.random.Generator], bool]
    share: float = 1.0


def score(values: Array, *, higher: bool = True, chance: float | None = None) -> TaskScore:
    numbers = np.asarray(values, dtype=float)
    items = {f"{i:04d}": float(value) for i, value in enumerate(numbers)}
    stderr = float(numbers.std(ddof=1) / np.sqrt(len(numbers)))
    return TaskScore("acc", float(numbers.mean()), stderr, higher, items, chance)


def config(count: int, **more: object) -> ScoreConfig:
    tasks = [{"task": f"t{index}", "metric": "acc"} for index in range(count)]
    return ScoreConfig.model_validate({"tasks": tasks, **more})


def holds(found: Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


def related(rng: np.random.Generator, count: int, first: float, second: float) -> tuple[Array, Array]:
    """Return answers of two models that share how hard an item is, as merges of the same parents do."""
    hard = rng.random(count)
    own = rng.random((2, count))
    same = rng.random(count) < 0.7
    answers = [np.where(same, hard, own[side]) < rate for side, rate in enumerate((first, second))]
    return answers[0].astype(float), answers[1].astype(float)


def one_model(rate: float, count: int) -> Case:
    def draw(rng: np.random.Generator) -> bool:
        return holds(task_interval(score(rng.random(count) < rate)), rate)

    return Case(f"one model, {rate:g} right, {count} items", draw)


def near_one(count: int, *, pair: bool) -> Case:
    """Rates anywhere between .95 and 1: at one rate the few possible counts decide the coverage."""

    def draw(rng: np.random.Generator) -> bool:
        first, second = rng.uniform(0.95, 1.0, 2)
        a, b = related(rng, count, first, second)
        if pair:
            return holds(paired_interval(a, b), first - second)
        return holds(task_interval(score(a)), first)

    return Case(f"{'difference' if pair else 'one model'}, rates from .95 to 1, {count} items", draw)


def difference(first: float, second: float, count: int) -> Case:
    def draw(rng: np.random.Generator) -> bool:
        return holds(paired_interval(*related(rng, count, first, second)), first - second)

    return Case(f"difference of {first:g} and {second:g}, {count} items", draw)


def bootstrap(first: float, second: float, count: int) -> Case:
    def draw(rng: np.random.Generator) -> bool:
        a, b = related(rng, count, first, second)
        found = compare({"t0": score(a)}, {"t0": score(b)}, config(1)).bootstrap
        return holds(found, first - second)

    return Case(f"the same by the paired bootstrap ({first:g}, {second:g}, {count})", draw, 0.3)


def weighted(rates: tuple[float, ...], count: int) -> Case:
    block = config(len(rates))

    def draw(rng: np.random.Generator) -> bool:
        tasks = {f"t{i}": score(rng.random(count) < rate) for i, rate in enumerate(rates)}
        return holds(interval(tasks, block), float(np.mean(rates)))

    return Case(f"mean of tasks at {', '.join(f'{rate:g}' for rate in rates)}, {count} items each", draw)


def perplexity(count: int) -> Case:
    def draw(rng: np.random.Generator) -> bool:
        loss = score(rng.gamma(4.0, 0.5, count), higher=False)
        return holds(interval({"t0": loss}, config(1)), -2.0)

    return Case(f"a skewed metric (gamma, 4), {count} items", draw)


def lowest(ours: tuple[float, ...], theirs: tuple[float, ...], count: int, *, pair: bool) -> Case:
    """The lowest task on the common scale, for one model or for the difference of two."""
    block = config(len(ours), objective="worst")
    parents = {
        name: {f"t{i}": TaskScore("acc", rate, 0.0, True) for i in range(len(ours))}
        for name, rate in (("a", 0.3), ("b", 0.8))
    }
    scale = [[(rate - 0.3) / 0.5 for rate in rates] for rates in (ours, theirs)]

    def draw(rng: np.random.Generator) -> bool:
        answers = [related(rng, count, a, b) for a, b in zip(ours, theirs, strict=True)]
        first = {f"t{i}": score(a) for i, (a, _) in enumerate(answers)}
        if not pair:
            return holds(interval(first, block, parents), min(scale[0]))
        second = {f"t{i}": score(b) for i, (_, b) in enumerate(answers)}
        found = compare(first, second, block, parents)
        return holds(Interval(found.difference, found.low, found.high), min(scale[0]) - min(scale[1]))

    rates = ", ".join(f"{rate:g}" for rate in ours)
    what = "difference of the lowest task" if pair else "lowest task"
    other = f" against {', '.join(f'{rate:g}' for rate in theirs)}" if pair else ""
    return Case(f"{what} of {rates}{other}, {count} items", draw, 0.5)


def yardstick(
    kind: str, ours: tuple[float, ...], gap: tuple[float, float], count: int, *, pair: bool
) -> Case:
    """A value on the scale of two parents whose scores are drawn, too, and which the interval takes as known.

    On task i one parent (i even: the first) has the rate ``gap[1]`` and the other ``gap[0]``.
    """
    block = config(len(ours), objective=kind)
    true = [(rate - gap[0]) / (gap[1] - gap[0]) for rate in ours]
    truth = min(true) if kind == "worst" else float(np.mean(true))
    lower = [rate - 0.05 for rate in ours]
    below = [(rate - gap[0]) / (gap[1] - gap[0]) for rate in lower]
    other = min(below) if kind == "worst" else float(np.mean(below))

    def draw(rng: np.random.Generator) -> bool:
        models: list[dict[str, TaskScore]] = [{}, {}, {}, {}]
        for task, rates in enumerate(zip(ours, lower, strict=True)):
            hard = rng.random(count)
            for model, rate in zip(models, (*rates, gap[1 - task % 2], gap[task % 2]), strict=True):
                own = np.where(rng.random(count) < 0.7, hard, rng.random(count))
                model[f"t{task}"] = score(own < rate)
        parents = {"a": models[2], "b": models[3]}
        if not pair:
            return holds(interval(models[0], block, parents), truth)
        found = compare(models[0], models[1], block, parents)
        return holds(Interval(found.difference, found.low, found.high), truth - other)

    rates = ", ".join(f"{rate:g}" for rate in ours)
    what = f"difference of .05 on `{kind}`" if pair else f"`{kind}`"
    return Case(
        f"{what}, {rates} between parents at {gap[0]:g} and {gap[1]:g} that are drawn, {count} items",
        draw,
        0.1 if pair else 0.5,
    )


def skill(model: float, parent: float, chance: float, count: int) -> Case:
    def draw(rng: np.random.Generator) -> bool:
        a, b = related(rng, count, model, parent)
        found = kept({"t0": score(a)}, {"t0": score(b, chance=chance)}, config(1))
        return found is None or holds(found, (model - chance) / (parent - chance))

    return Case(f"kept of a skill, {model:g} of {parent:g}, chance {chance:g}, {count} items", draw, 0.5)


def winner(kind: str, count: int, items: int, *, rate: float = 0.6) -> Case:
    """The winner of ``count`` equal candidates, as reports could describe it."""
    block = config(1)

    def draw(rng: np.random.Generator) -> bool:
        hard = rng.random(items)
        answers = [np.where(rng.random(items) < 0.5, hard, rng.random(items)) < rate for _ in range(count)]
        candidates = [{"t0": score(one)} for one in answers]
        if kind == "naive":
            best = max(candidates, key=lambda tasks: tasks["t0"].value)
            return holds(interval(best, block), rate)
        choice = choose(candidates, block)
        if kind == "corrected":
            return holds(choice.intervals[choice.winner], rate)
        if kind == "other":
            return holds(interval(half(candidates[choice.winner], 1), block), rate)
        parent = {"t0": score(np.where(rng.random(items) < 0.5, hard, rng.random(items)) < rate)}
        ours, theirs = half(candidates[choice.winner], 1), half(parent, 1)
        found = paired_interval(
            np.array(list(ours["t0"].items.values())), np.array(list(theirs["t0"].items.values()))
        )
        return holds(found, 0.0)

    names = {
        "naive": "on the items that chose it, uncorrected",
        "corrected": "on the half that chose it, for all at once",
        "other": "on the other half",
        "gap": "minus a parent on the other half",
    }
    return Case(f"winner of {count}, {rate:g} right, {items} items: {names[kind]}", draw, 0.5)


def cases() -> Iterator[Case]:
    """Yield everything that docs/results.md reports."""
    for rate in (0.5, 0.9, 0.99):
        for count in (50, 100, 200, 1000):
            yield one_model(rate, count)
    for pair in (False, True):
        for count in (100, 200):
            yield near_one(count, pair=pair)
    for first, second in ((0.55, 0.5), (0.9, 0.85), (0.99, 0.98)):
        for count in (100, 200):
            yield difference(first, second, count)
    yield bootstrap(0.55, 0.5, 200)
    yield bootstrap(0.99, 0.98, 200)
    yield weighted((0.6, 0.3, 0.9), 100)
    yield weighted((0.97, 0.98), 200)
    yield perplexity(100)
    for pair in (False, True):
        yield lowest((0.7, 0.5), (0.6, 0.6), 200, pair=pair)
        yield lowest((0.6, 0.6), (0.55, 0.55), 200, pair=pair)
    yield from yardsticks()
    yield skill(0.6, 0.7, 0.25, 200)
    yield skill(0.95, 0.97, 0.25, 200)
    yield skill(0.3, 0.5, 0.0, 100)
    yield skill(0.7, 0.7, 0.25, 200)
    for count in (5, 20):
        for kind in ("naive", "corrected", "other", "gap"):
            yield winner(kind, count, 400)


def yardsticks() -> Iterator[Case]:
    """Yield both scales of the parents, with parents far apart, nearer, and hardly apart."""
    for kind in ("normalised", "worst"):
        for pair in (False, True):
            for gap, ours in (
                ((0.3, 0.8), (0.7, 0.6)),
                ((0.5, 0.7), (0.65, 0.6)),
                ((0.5, 0.6), (0.57, 0.56)),
            ):
                yield yardstick(kind, ours, gap, 200, pair=pair)


def coverage(case: Case, rounds: int, seed: int = 0) -> float:
    """Return the share of rounds in which the interval held the truth."""
    rng = np.random.default_rng([seed, *case.name.encode()])
    return float(np.mean([case.draw(rng) for _ in range(max(1, int(rounds * case.share)))]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the coverage of evolve's intervals.")
    parser.add_argument("--rounds", type=int, default=2000, help="rounds per case; slow cases take a part")
    options = parser.parse_args()
    print("| nominal 95 % interval of | holds the truth |\n|---|---|")
    for case in cases():
        print(f"| {case.name} | {100 * coverage(case, options.rounds):.1f} % |", flush=True)


if __name__ == "__main__":
    main()
