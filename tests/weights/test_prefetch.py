"""Tensors computed ahead: the same ones, each once, and few of them at a time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from evolve.errors import CandidateError
from evolve.weights.model import Model, TensorSpec
from evolve.weights.prefetch import prefetched

COUNT = 40


class Source:
    """Computes tensors and counts: how often each, and how many at once."""

    def __init__(self, folder, seconds=0.001):
        specs = {f"w{number}": TensorSpec((4,), "float32") for number in range(COUNT)}
        self.computed = Counter()
        self.busy = self.busiest = 0
        self._seconds = seconds
        self._lock = threading.Lock()
        self.model = Model({}, specs, self.tensor, folder)

    def tensor(self, name):
        with self._lock:
            self.computed[name] += 1
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        time.sleep(self._seconds)
        with self._lock:
            self.busy -= 1
        return torch.full((4,), float(name[1:]))


def test_each_is_computed_once_by_as_many_threads(tmp_path):
    source = Source(tmp_path, seconds=0.005)
    model = prefetched(source.model, 3)
    for turn in (1, 2):
        for number, (name, tensor) in enumerate(model.tensors()):
            assert tensor.tolist() == [float(number)] * 4
            assert name == f"w{number}"
        assert source.computed == dict.fromkeys(source.model.specs, turn)
    assert source.busiest == 3


@pytest.mark.parametrize("threads", [2, 3])
def test_one_result_for_each_thread_waits(threads, tmp_path):
    source = Source(tmp_path)
    model = prefetched(source.model, threads)
    for number, name in enumerate(source.model.specs):
        model.tensor(name)
        time.sleep(0.02)
        assert sum(source.computed.values()) == min(COUNT, number + 1 + threads)
        if number == 5:
            break


def test_one_thread_leaves_the_model_as_it_is(tmp_path):
    model = Source(tmp_path).model
    assert prefetched(model, 1) is model


def test_another_order_gives_the_same(tmp_path):
    source = Source(tmp_path)
    model = prefetched(source.model, 2)
    for name in [*reversed(source.model.specs), "w3", "w30", "w3"]:
        assert model.tensor(name).tolist() == [float(name[1:])] * 4


def test_an_error_comes_where_the_tensor_is_asked_for(tmp_path):
    source = Source(tmp_path)
    specs = source.model.specs

    def tensor(name):
        if name == "w2":
            raise CandidateError("non_finite", name)
        return source.tensor(name)

    model = prefetched(Model({}, specs, tensor, tmp_path), 2)
    model.tensor("w0")
    model.tensor("w1")
    with pytest.raises(CandidateError, match="w2"):
        model.tensor("w2")
    assert model.tensor("w3").tolist() == [3.0] * 4


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_targets_are_filled_each_once_in_the_type_of_the_spec(threads, tmp_path):
    source = Source(tmp_path)
    specs = dict(source.model.specs) | {"w3": TensorSpec((4,), "bfloat16")}
    model = prefetched(
        replace(source.model, specs=specs, tensor=lambda name: source.tensor(name) + 1 / 256), threads
    )
    targets = {name: torch.full((4,), -1.0) for name in reversed(specs) if name != "w7"}
    model.fill(targets)
    assert source.computed == dict.fromkeys(targets, 1)
    for name, target in targets.items():
        # 3 + 1/256 is no bfloat16.
        assert target.tolist() == [float(name[1:]) + (0 if name == "w3" else 1 / 256)] * 4


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_first_error_stops_a_fill(threads, tmp_path):
    source = Source(tmp_path)

    def tensor(name):
        if name == "w5":
            raise CandidateError("non_finite", "w5: too large")
        return source.tensor(name)

    model = prefetched(replace(source.model, tensor=tensor), threads)
    with pytest.raises(CandidateError, match="w5: too large"):
        model.fill({name: torch.empty(4) for name in source.model.specs})
    assert sum(source.computed.values()) < 5 + 2 * threads
    # The next one works.
    target = torch.empty(4)
    model.fill({"w6": target})
    assert target.tolist() == [6.0] * 4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_tensor_of_another_shape_is_not_spread_over_the_target(threads, tmp_path):
    model = prefetched(Source(tmp_path).model, threads)
    with pytest.raises(CandidateError, match=r"w2 came out as \[4\], not \[2, 4\]"):
        model.fill({"w2": torch.empty(2, 4)})
