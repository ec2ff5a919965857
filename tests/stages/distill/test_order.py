"""In which order the distill stage goes over its text, and how fast: curricula, budgets, schedules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.config.plain import ranges
from evolve.config.values import DataFile
from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import Layout, prompts_of, read, rows_of
from evolve.stages.distill.stage import _rows
from evolve.training.rows import IGNORED
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.stages.distill.kit import block, models_of, run, shown, tensors

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "warmup_steps": 0}


def test_layers_that_have_not_joined_rest(home: Path) -> None:
    """The last of two groups joins when everything is over."""
    arguments = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "weight_decay": 0.1,
        "gradual_unfreezing": {"groups": 2, "until": 1.0},
    }
    found = run(home, model="teacher", teacher={"kind": "hf", "model": "student"}, training_args=arguments)
    start = models_of(home)["teacher"]
    moved = {name for name, value in tensors(found).items() if not torch.equal(value, start.tensor(name))}
    assert moved == {name for name in start.specs if ".layers.1." in name or name == "model.norm.weight"}


def test_every_budget_has_the_whole_schedule(home: Path) -> None:
    """A rung of a search is no training that was cut off: its rate has come down to the end."""
    choices = [60, 120, 240]
    data = {"path": str(home / "data.jsonl"), "max_length": 48, "packing": False}
    searched = block(home, dataset={**data, "max_tokens": {"choices": choices}})
    assert searched.problems() == [] and [path for path, _ in ranges(searched)] == [("dataset", "max_tokens")]
    arguments = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "warmup_steps": 0}
    seen = []
    for most in choices:
        made = run(
            home,
            dataset={**data, "max_tokens": most},
            training_args={**arguments, "lr_scheduler_type": "linear"},
        )
        report = shown(made)
        steps, log = report["steps"], report["log"]
        assert report["data"]["tokens"] <= most
        # Linear: the rate of step k of n is (n - k + 1) / n of the largest one.
        assert [line["step"] for line in log] == list(range(1, steps + 1))
        rates = [line["learning_rate"] for line in log]
        assert rates == pytest.approx([1e-3 * (steps - step) / steps for step in range(steps)])
        seen.append(steps)
    assert seen == sorted(set(seen)), "budgets that differ"


def test_rows_of_conversations(home: Path, tmp_path: Path) -> None:
    student = models_of(home)["student"]
    tokenizer = load_tokenizer(student.files, student.config)
    documents, left_out = read(home / "data.jsonl", tokenizer, 48)
    assert (len(documents), left_out) == (24, 0)
    line = json.loads((home / "data.jsonl").read_text().splitlines()[0])
    ids = [label for label in documents[0].labels if label != IGNORED]
    assert tokenizer.backend.decode(ids) == line["completion"]
    assert ids[-1] == tokenizer.end
    rows = rows_of(documents, Layout(48, packing=False, epochs=2, seed=3))
    assert rows.counts["rows"] == 48
    firsts = [tuple(row.tokens) for row in rows.rows]
    assert sorted(firsts[:24]) == sorted(firsts[24:])
    assert firsts[:24] != firsts[24:]
    prompts = {tokenizer.backend.decode(list(prompt)) for prompt in prompts_of(rows.rows)}
    assert prompts == {json.loads(text)["prompt"] for text in (home / "data.jsonl").read_text().splitlines()}


def test_a_curriculum_orders_each_time_over_the_data(home: Path) -> None:
    tokenizer = load_tokenizer(open_model(str(home / "student")).files, {})
    documents, _ = read(home / "data.jsonl", tokenizer, 48)

    def lengths(**keys: Any) -> list[int]:
        made = _rows(
            block(
                home,
                curriculum=keys,
                dataset={"path": str(home / "data.jsonl"), "max_length": 48, "packing": False},
                training_args={"num_train_epochs": 2},
            ),
            DataFile(path=str(home / "data.jsonl")),
            tokenizer,
            3,
        )
        return [len(row.tokens) for row in made.rows]

    count = len(documents)
    short = sorted(len(one.tokens) for one in documents)
    assert lengths() == short + short
    assert lengths(reverse=True) == (short + short)[::-1][:count] * 2
    paced = lengths(pacing=0.2)
    assert sorted(paced) == sorted(short + short) and paced != short + short
    assert max(paced[: count // 10]) <= short[count // 2], "only short ones may come at the start"


def test_a_curriculum_without_effect_is_no_other_recipe(home: Path) -> None:
    plain = block(home).model_dump(exclude_none=True)
    paced = block(home, curriculum={"pacing": 1}).model_dump(exclude_none=True)
    assert DistillBlock.effective(paced) == DistillBlock.effective(plain)
    [(path, message)] = block(home, curriculum={"pacing": {"low": 0, "high": 1}}).problems()
    assert path == ("curriculum", "pacing") and "above 0" in message
