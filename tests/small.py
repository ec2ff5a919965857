"""A search that takes seconds: tiny random parents, a local four-way task, the hf engine."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import yaml

from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("the", "hen", "and", "rat", "one", "ten", "red", "sea", "tie", "net", "ore", "ant", "end", "tan")


def make_task(folder: Path, *, items: int = 60, name: str = "tiny_choice") -> Path:
    """Write a multiple-choice task with ``items`` distinct items, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    data = folder / f"{name}.jsonl"
    with data.open("w") as file:
        for index in range(items):
            choices = draw.sample(WORDS, 4)
            question = f"{index} {' '.join(draw.choices(WORDS, k=3))}"
            file.write(
                json.dumps({"question": question, "choices": choices, "answer": draw.randrange(4)}) + "\n"
            )
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def make_search(folder: Path, **changes: Any) -> Path:
    """Write parents, a task and a config into ``folder``, and return the config's path.

    Args:
        folder: Gets everything; may exist.
        changes: Dotted keys to values, as ``{"search.trials": 5}``.
    """
    for seed, name in enumerate(("base", "one", "two")):
        if not (folder / name / "config.json").exists():
            make_model(folder / name, seed=seed)
    make_task(folder / "tasks")
    config: dict[str, Any] = {
        "name": "small",
        "models": {name: str(folder / name) for name in ("base", "one", "two")},
        "pipeline": [
            {
                "merge": {
                    "merge_method": "dare_ties",
                    "base_model": "base",
                    "models": [
                        {"model": "one", "parameters": {"weight": {"low": 0, "high": 1.5}, "density": 0.5}},
                        {
                            "model": "two",
                            "parameters": {
                                "weight": {"low": 0, "high": 1.5, "knots": 2},
                                "density": {"choices": [0.3, 0.6, 1.0]},
                            },
                        },
                    ],
                    "dtype": "float32",
                }
            }
        ],
        "score": {
            "backend": "hf",
            "include_path": str(folder / "tasks"),
            "tasks": [{"task": "tiny_choice", "metric": "acc", "items": 20}],
            "holdout": {"items": 20},
        },
        "search": {"trials": 9, "population": 4, "seed": 3},
        "engine": {"kind": "inline"},
    }
    for key, value in changes.items():
        *path, last = key.split(".")
        block = config
        for part in path:
            block = block.setdefault(part, {})
        block[last] = value
    target = folder / "small.yaml"
    target.write_text(yaml.safe_dump(config, sort_keys=False))
    return target
