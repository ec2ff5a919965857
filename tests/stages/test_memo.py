"""What is kept between candidates, and what is forgotten."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evolve.stages.memo import Memo, limit_of
from evolve.weights.model import Model, TensorSpec

if TYPE_CHECKING:
    import pytest


def model() -> Model:
    return Model({}, {}, lambda name: (_ for _ in ()).throw(KeyError(name)), Path())


class Counted:
    """Computes arrays of so many bytes, and counts how often."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.full(self.size, self.calls, np.uint8)


def test_a_value_is_computed_once_for_the_same_models() -> None:
    memo, compute, one, two = Memo(), Counted(10), model(), model()
    for _ in range(3):
        assert memo.get(("a", "t"), (one, two), compute)[0] == 1
    assert compute.calls == 1
    memo.get(("a", "t"), (two, one), compute)
    memo.get(("a", "u"), (one, two), compute)
    memo.get(("b", "t"), (one, two), compute)
    assert compute.calls == 4
    assert memo.nbytes == 40


def test_a_dead_model_is_forgotten_and_its_id_means_nothing() -> None:
    memo, compute, stays = Memo(), Counted(10), model()
    for _ in range(200):  # ids are used again at once
        passing = model()
        before = compute.calls
        memo.get(("a", "t"), (passing, stays), compute)
        assert compute.calls == before + 1
        del passing
    memo.get(("a", "t"), (stays, stays), compute)
    assert memo.nbytes == 10


def test_beyond_the_limit_nothing_more_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    memo, compute, one = Memo(25), Counted(10), model()
    caplog.set_level("INFO")
    for _ in range(2):
        for name in ("a", "b", "c"):
            memo.get((name, "t"), (one,), compute)
    assert compute.calls == 4, "a and b are kept, c is computed each time"
    assert [record.message.rpartition("; ")[2] for record in caplog.records] == [
        "engine.cache_gib raises it"
    ], "said once"
    assert memo.nbytes == 20


def test_the_bound_follows_the_weights_and_the_memory() -> None:
    large = replace(model(), specs={"w": TensorSpec((3 << 29,), "bfloat16")})
    gib = 1 << 30
    assert limit_of([large], 100 * gib) == 3 * gib, "what two bytes a parameter take"
    assert limit_of([large], 8 * gib) == 2 * gib, "a quarter of what is free"
    assert limit_of([large], None) == limit_of([model()], 100 * gib) == gib


def test_clear_gives_everything_back() -> None:
    memo, compute, one = Memo(), Counted(10), model()
    memo.get(("a", "t"), (one,), compute)
    memo.latest("key", (one,), lambda: memo)
    memo.clear()
    assert memo.nbytes == 0
    memo.get(("a", "t"), (one,), compute)
    assert compute.calls == 2


def test_from_many_threads() -> None:
    memo, models = Memo(), [model() for _ in range(4)]
    wrong: list[int] = []

    def work() -> None:
        for turn in range(300):
            number = turn % 4
            value = memo.get(
                ("a", "t"), (models[number],), lambda number=number: np.full(8, number, np.uint8)
            )
            if value[0] != number:
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memo.nbytes == 32
