"""Groups as tasks: one score, lm-eval's own, over items of all tasks in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from evolve.score.choice import halves
from evolve.score.groups import combined
from evolve.score.metrics import standard_error
from evolve.score.scorer import Scorer, no_means
from evolve.score.tasks import load_tasks, problems
from evolve.types import TaskScore
from tests.score.local_tasks import CHOICE, METRIC, Holder, KnownModel, choice_docs, config, write_task

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"small": 6, "middle": 11, "large": 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    start = 0
    for name, count in SIZES.items():
        write_task(tmp_path, name, choice_docs(count, start=start), **CHOICE)
        start += 100
    write_group(tmp_path, "sized", ["small", "large"])
    write_group(tmp_path, "alike", ["small", "large"], weight_by_size=False)
    write_group(
        tmp_path, "nested", [{"group": "inner", "task": ["small", "middle"]}, "large"], weight_by_size=False
    )
    write_group(tmp_path, "outer", ["sized", "middle"])
    return tmp_path


def write_group(folder: Path, name: str, members: list[Any], **rule: Any) -> None:
    block = {"group": name, "task": members, "aggregate_metric_list": [{"metric": "acc", **rule}]}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(block))


def knows(number: int) -> bool:
    return number % 3 == 0 if number < 100 else number % 5 != 0


def lm_eval_says(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, int]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(KnownModel(knows), tasks=[name], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    return found["groups"][name]["acc,none"], {task: len(rows) for task, rows in found["samples"].items()}


@pytest.mark.parametrize("name", ["sized", "alike", "nested", "outer"])
def test_the_value_is_that_of_lm_eval(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, samples = lm_eval_says(folder, name, monkeypatch)
    scores = Scorer(config(folder, {"task": name, "metric": "acc"})).score(
        Holder(KnownModel(knows)), "search"
    )
    assert scores.keys() == {name}
    score = scores[name]
    assert score.value == pytest.approx(value, abs=1e-12)
    assert np.mean(list(score.items.values())) == pytest.approx(value, abs=1e-12)
    assert {task: sum(key.startswith(f"{task}/") for key in score.items) for task in samples} == samples
    assert score.chance == 0.25


@pytest.mark.parametrize("name", ["sized", "alike"])
def test_a_model_that_knows_all_has_1_on_every_part_of_the_items(folder: Path, name: str) -> None:
    scorer = Scorer(config(folder, {"task": name, "metric": "acc", "items": 20}, holdout=20))
    score = scorer.score(Holder(KnownModel()), "holdout")[name]
    assert [half.value for half in halves(score)] == pytest.approx([1.0, 1.0], abs=1e-12)


def test_items_come_from_all_tasks_and_no_document_stands_on_both_sides(folder: Path) -> None:
    scorer = Scorer(config(folder, {"task": "alike", "metric": "acc", "items": 6}, holdout=6))
    assert scorer.sizes == {"alike": {"search": 6, "holdout": 6}}
    lm = Holder(KnownModel())
    search, holdout = (scorer.score(lm, split)["alike"].items for split in ("search", "holdout"))
    assert not search.keys() & holdout.keys()
    for items in (search, holdout):
        assert sum(key.startswith("small/") for key in items) == 3
    sized = Scorer(config(folder, {"task": "sized", "metric": "acc", "items": 23}, holdout=23))
    kept = {key for split in ("search", "holdout") for key in sized.score(lm, split)["sized"].items}
    assert len(kept) == 46 and sum(key.startswith("small/") for key in kept) == 6


def test_parts_of_a_group_by_size(folder: Path) -> None:
    scorer_config = config(folder, {"task": "sized", "metric": "acc"}, {"task": "middle", "metric": "acc"})
    scorer = Scorer(scorer_config)
    lm = Holder(KnownModel(knows))
    whole = scorer.score(lm, "search")
    assert not no_means(load_tasks(scorer_config)[0], [])
    wanted = [key for key in whole["sized"].items if key.startswith("small/")][:2]
    wanted += [key for key in whole["sized"].items if key.startswith("large/")][:3]
    some = tuple(whole["middle"].items)[:2]
    parts = scorer.score(lm, "search", (("sized", tuple(wanted)), ("middle", some)))
    assert parts["sized"].items == {key: whole["sized"].items[key] for key in sorted(wanted)}
    assert parts["middle"].items == {key: whole["middle"].items[key] for key in some}
    alike = config(folder, {"task": "alike", "metric": "acc"})
    assert no_means(load_tasks(alike)[0], []) == ["alike (its tasks count alike)"]


def test_the_error_is_that_of_strata() -> None:
    rng = np.random.default_rng(0)
    scores = {}
    for name, count, rate in (("a", 20, 0.9), ("b", 80, 0.3)):
        values = (rng.random(count) < rate).astype(float)
        items = {f"{number:03d}": float(value) for number, value in enumerate(values)}
        scores[name] = TaskScore("acc", float(values.mean()), standard_error(list(values)), True, items, 0.5)
    whole = combined(scores, metric="acc", by_size=False)
    expected = np.sqrt(sum(np.var(list(one.items.values())) / len(one.items) for one in scores.values())) / 2
    assert whole.value == pytest.approx(np.mean([one.value for one in scores.values()]))
    assert whole.stderr == pytest.approx(expected, rel=0.02)


def test_one_task_beside_its_group_is_another_task(folder: Path) -> None:
    scorer = Scorer(
        config(folder, {"task": "sized", "metric": "acc"}, {"task": "large", "metric": "acc_norm"})
    )
    scores = scorer.score(Holder(KnownModel(knows)), "search")
    assert scores["large"].items.keys() == {
        key.removeprefix("large/") for key in scores["sized"].items if key.startswith("large/")
    }


def test_what_is_wrong_with_a_group_is_said(folder: Path) -> None:
    def only(name: str, metric: str = "acc", **more: Any) -> str:
        [(_, text)] = problems(config(folder, {"task": name, "metric": metric}, **more))
        return text

    assert "the group has no score of 'acc_norm'; it has acc" in only("sized", "acc_norm")
    write_group(folder, "twice", ["sized", "small"])
    assert "holds 'small' twice" in only("twice")
    write_group(folder, "gone", ["small", "nowhere"])
    assert "its task 'nowhere'" in only("gone")
    assert "at least one item of each" in only("nested", holdout=2)
    write_task(
        folder, "other", choice_docs(9), **CHOICE | {"metric_list": [{"metric": "acc_norm", **METRIC}]}
    )
    write_group(folder, "mixed", ["small", "other"])
    assert "its task 'other'" in only("mixed") and "no metric 'acc'" in only("mixed")


def test_changes_that_a_group_makes_reach_its_tasks(folder: Path) -> None:
    block = yaml.safe_load((folder / "sized.yaml").read_text())
    block["task"] = [{"task": "small", "doc_to_text": "Please: {{question}}"}, "large"]
    (folder / "sized.yaml").write_text(yaml.safe_dump({**block, "description": "All of them. "}))
    texts = {
        name: args[0]
        for name, _, args in Scorer(config(folder, {"task": "sized", "metric": "acc"})).requests("search")
    }
    assert texts["sized/small"].startswith("All of them. Please: What")
    assert texts["sized/large"].startswith("All of them. What")
    assert json.loads((folder / "small.jsonl").read_text().splitlines()[0])["question"].startswith("What")
