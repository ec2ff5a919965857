"""Tensors that stay on a device; the CPU stands for it, the rules are the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from evolve.weights.model import Model, TensorSpec
from evolve.weights.resident import at_home, resident


def counting(reads, name):
    specs = {tensor: TensorSpec((8,), "float32") for tensor in ("a", "b", "c")}

    def tensor(tensor):
        reads[name, tensor] += 1
        return torch.full((8,), float(reads[name, tensor]))

    return Model({}, specs, tensor, Path())


def test_what_fits_is_read_once_and_the_rest_each_time():
    reads = Counter()
    models = {name: counting(reads, name) for name in ("x", "y")}
    kept = resident(models, torch.device("cpu"), 4 * 32)
    for _ in range(3):
        for model in kept.values():
            for name, tensor in model.tensors():
                assert tensor.shape == (8,), name
    assert sorted(reads.values()) == [1, 1, 1, 1, 3, 3]
    assert kept["x"].specs == models["x"].specs


def test_without_room_nothing_stays():
    reads = Counter()
    model = resident({"x": counting(reads, "x")}, torch.device("cpu"), 0)["x"]
    assert [float(model.tensor("a")[0]) for _ in range(3)] == [1, 2, 3]


def test_at_home_a_model_is_what_it_was():
    model = counting(Counter(), "x")
    moved = resident({"x": model}, torch.device("cpu"), 1000)["x"]
    assert at_home(moved) is model
    assert at_home(model) is model
    named = at_home(replace(moved, content="sha256:1"))
    assert named.content == "sha256:1"
    assert named.tensor is model.tensor
