from __future__ import annotations

import math
import random

import numpy as np
import pytest

from evolve.config.schema import ScoreConfig
from evolve.errors import RunError
from evolve.score.objective import objective
from evolve.search.table import Table
from evolve.types import Scored, TaskScore

CONFIG = ScoreConfig.model_validate(
    {
        "tasks": [
            {"task": "many", "metric": "acc", "weight": 2.0},
            {"task": "few", "metric": "bits", "weight": 1.0},
            {"task": "shown", "metric": "acc", "weight": 0.0},
        ]
    }
)
SIZES = {"many": 60, "few": 15, "shown": 10}


def scored(seed: int, leave_out: str | None = None) -> Scored:
    """Answer every second item as all others do, and the rest at random."""
    draw = random.Random(seed)
    tasks = {}
    for task, size in SIZES.items():
        items = {f"{task}{i}": float(i % 4 < 2 if i % 2 else draw.random() < 0.5) for i in range(size)}
        items.pop(leave_out or "", None)
        tasks[task] = TaskScore("acc", sum(items.values()) / len(items), 0.1, task != "few", items, 0.25)
    return Scored(*objective(tasks, CONFIG), tasks, {"total": 1.0})


def part(outcome: Scored, items: object) -> dict[str, TaskScore]:
    wanted = dict(items)
    return {
        task: TaskScore("acc", 0.0, 0.0, True, {key: outcome.tasks[task].items[key] for key in keys})
        for task, keys in wanted.items()
    }


def table(discriminative: bool = False, seed: int = 0) -> Table:
    return Table([scored(seed) for seed in range(4)], CONFIG, seed=seed, discriminative=discriminative)


@pytest.mark.parametrize("discriminative", [False, True])
def test_every_prefix_has_its_share_of_every_task_that_counts(discriminative: bool) -> None:
    found = table(discriminative)
    assert sorted(found.items) == sorted((task, f"{task}{i}") for task, n in SIZES.items() for i in range(n))
    assert {task for task, _ in found.items[-10:]} == {"shown"}
    for count in (10, 25, 50):
        asked = [task for task, _ in found.items[:count]]
        assert asked.count("few") == pytest.approx(count / 5, abs=3 if discriminative else 1)
    assert found.strata.share[found.strata.share != 0].tolist() == pytest.approx(
        [2 / 3, -1 / 3] if not discriminative else found.strata.share[found.strata.share != 0].tolist()
    )


def test_the_order_is_seeded_and_the_same_for_the_same_seed() -> None:
    assert table().items == table().items
    assert table().items != table(seed=1).items
    assert table(discriminative=True).items != table().items


def test_separating_items_come_first_and_count_less_each() -> None:
    found = table(discriminative=True)
    outcomes = [scored(seed) for seed in range(4)]
    spread = {
        (task, key): np.std([outcome.tasks[task].items[key] for outcome in outcomes])
        for task, key in found.items
    }
    many = [item for item in found.items if item[0] == "many"]
    assert np.mean([spread[item] for item in many[:15]]) > np.mean([spread[item] for item in many[-15:]])
    weights = dict(zip(found.items, found.strata.weights(30), strict=False))
    first = [weights[item] for item in found.items[:30] if item[0] == "many"]
    assert len({round(weight, 12) for weight in first}) == 2
    assert sum(first) == pytest.approx(2 / 3)


@pytest.mark.parametrize("discriminative", [False, True])
def test_parts_add_up_to_the_whole(discriminative: bool) -> None:
    found, whole = table(discriminative), scored(9)
    for count in (7, 40, len(found)):
        assert found.known("r") < count
        assert found.whole("r") is None
        missing = found.missing("r", count)
        assert sum(len(keys) for _, keys in missing) == count - found.known("r")
        found.add("r", part(whole, missing), {"total": 2.0})
        assert found.known("r") == count
    again = found.whole("r")
    assert again is not None
    assert again.value == pytest.approx(whole.value, abs=1e-15)
    assert again.seconds == {"total": 6.0}
    for name, task in whole.tasks.items():
        assert again.tasks[name].items == task.items
        assert again.tasks[name].value == pytest.approx(task.value, abs=1e-15)
        assert again.tasks[name].higher_is_better == task.higher_is_better
        assert again.tasks[name].chance == task.chance
    assert found.strata.estimate(found.values("r")) == pytest.approx(whole.value, abs=1e-12)


def test_what_was_not_asked_is_not_known() -> None:
    found = table()
    assert found.known("r") == 0
    assert all(math.isnan(value) for value in found.values("r", 5))


def test_an_item_without_a_score_cannot_be_raced() -> None:
    with pytest.raises(RunError, match="leaves some out"):
        Table([scored(0), scored(1, leave_out="few3")], CONFIG, seed=0, discriminative=False)
