from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import TaskError
from evolve.score.scorer import Scorer
from evolve.score.tasks import problems
from tests.score.local_tasks import (
    CHOICE,
    GENERATE,
    METRIC,
    Holder,
    KnownModel,
    choice_docs,
    config,
    generate_docs,
    write_task,
)

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.config.schema import ScoreConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_task(tmp_path, "choice", choice_docs(40), **CHOICE)
    write_task(tmp_path, "generate", generate_docs(30), **GENERATE)
    return tmp_path


def only(config: ScoreConfig) -> tuple[tuple[str | int, ...], str]:
    found = problems(config)
    assert len(found) == 1, found
    return found[0]


def test_good_tasks_have_no_problem(folder: Path) -> None:
    tasks = [{"task": "choice", "metric": "acc"}, {"task": "generate", "metric": "exact_match,number"}]
    assert problems(config(folder, *tasks, holdout=5)) == []


def test_all_problems_at_once(folder: Path) -> None:
    write_task(folder, "twin", generate_docs(30), **GENERATE)
    found = problems(
        config(
            folder,
            {"task": "choise", "metric": "acc"},
            {"task": "choice", "metric": "acc_nrom"},
            {"task": "generate", "metric": "exact_match,numbers"},
            {"task": "twin", "metric": "exact_match", "items": 28},
            holdout=5,
            eval_args={"limit": 3, "gen_kwarg": {}},
        )
    )
    paths = dict(found)
    assert set(paths) == {
        ("tasks", 0, "task"),
        ("tasks", 1, "metric"),
        ("tasks", 2, "metric"),
        ("tasks", 3, "items"),
        ("eval_args", "limit"),
        ("eval_args", "gen_kwarg"),
    }
    assert "'choise'" in paths["tasks", 0, "task"] and "did you mean 'choice'" in paths["tasks", 0, "task"]
    assert "did you mean 'acc_norm'" in paths["tasks", 1, "metric"]
    assert "it has acc, acc_norm" in paths["tasks", 1, "metric"]
    assert "did you mean 'number'" in paths["tasks", 2, "metric"]
    assert "30 usable items" in paths["tasks", 3, "items"] and "lower" in paths["tasks", 3, "items"]
    assert "items" in paths["eval_args", "limit"] and "gen_kwargs" in paths["eval_args", "gen_kwarg"]


def test_prepare_raises_them_with_their_paths(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"^score\.tasks\.0\.metric: task 'choice': .*it has acc"):
        Scorer(config(folder, {"task": "choice", "metric": "f1"})).prepare()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no items"), ('{"question": "x",\n', "cannot be read"), (None, "missing")],
)
def test_bad_data(folder: Path, content: str | None, message: str) -> None:
    data = folder / "choice.jsonl"
    data.unlink() if content is None else data.write_text(content)
    path, text = only(config(folder, {"task": "choice", "metric": "acc"}))
    assert path == ("tasks", 0, "task")
    assert "'choice'" in text and message in text


def test_a_template_that_does_not_fit(folder: Path) -> None:
    docs = [*choice_docs(10), {"question": None, "choices": ["0 a", "0 b"], "answer": 1}]
    write_task(folder, "choice", docs, **CHOICE | {"doc_to_text": "{{question.upper()}}"})
    path, text = only(config(folder, {"task": "choice", "metric": "acc"}))
    assert path == ("tasks", 0, "task") and "template fails on item" in text


def test_a_local_yaml_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "broken.yaml").write_text("task: broken\nmetric_list: [")
    (folder / "other.yml").write_text("task: other")
    _, text = only(config(folder, {"task": "broken", "metric": "acc"}))
    assert "broken.yaml" in text and "other.yml: must end in .yaml" in text


def test_no_such_folder(tmp_path: Path) -> None:
    path, text = only(config(tmp_path / "nowhere", {"task": "choice", "metric": "acc"}))
    assert path == ("include_path",) and "nowhere" in text


def test_a_group_without_a_score_names_its_tasks(folder: Path) -> None:
    (folder / "both.yaml").write_text("group: both\ntask: [choice, {task: generate, num_fewshot: 1}]\n")
    (folder / "all.yaml").write_text("group: all\ntask: [both]\n")
    for name in ("both", "all"):
        _, text = only(config(folder, {"task": name, "metric": "acc"}))
        assert "is a group of 2 tasks: choice, generate" in text and "one by one" in text


def test_a_task_of_lm_eval_is_found_without_its_whole_index(folder: Path) -> None:
    from evolve.score.catalog import _builtin

    _builtin.cache_clear()
    path, text = only(config(folder, {"task": "gsm8k", "metric": "exact_match"}))  # tests have no network
    assert path == ("tasks", 0, "task") and "cannot be fetched" in text
    assert _builtin.cache_info().currsize == 0


def test_holdout_that_leaves_nothing(folder: Path) -> None:
    path, text = only(config(folder, {"task": "choice", "metric": "acc"}, holdout=40))
    assert path == ("tasks", 0, "task") and "holdout.items" in text and "below 40" in text


def test_code_of_the_task_is_seeded_and_leaves_the_generators_alone(folder: Path) -> None:
    import random

    (folder / "shuffle.py").write_text(
        "import random\n"
        "def shuffle(dataset):\n"
        "    def one(doc):\n"
        "        order = list(doc['choices'])\n"
        "        random.shuffle(order)\n"
        "        return {**doc, 'choices': order}\n"
        "    return dataset.map(one, load_from_cache_file=False)\n"
    )
    text = (folder / "choice.yaml").read_text()
    (folder / "choice.yaml").write_text(text + "process_docs: !function shuffle.shuffle\n")
    task = config(folder, {"task": "choice", "metric": "acc", "items": 20}, holdout=10)
    prints = []
    for seed in (1, 2):
        random.seed(seed)
        before = random.getstate()
        prints.append(Scorer(task).fingerprint)
        assert random.getstate() == before
    assert prints[0] == prints[1]


def test_generation_arguments_pass_through(folder: Path) -> None:
    scorer = Scorer(
        config(
            folder,
            {"task": "generate", "metric": "exact_match", "items": 3},
            eval_args={"gen_kwargs": {"max_gen_toks": 3}},
        )
    )
    for _, kind, arguments in scorer.requests("search"):
        assert kind == "generate_until"
        assert arguments[1] == {"until": ["\n"], "do_sample": False, "max_gen_toks": 3}


def test_code_that_the_model_writes_needs_consent(folder: Path) -> None:
    write_task(folder, "choice", choice_docs(20), **CHOICE, unsafe_code=True)
    task: dict[str, Any] = {"task": "choice", "metric": "acc"}
    path, text = only(config(folder, task))
    assert path == ("tasks", 0, "task") and "confirm_run_unsafe_code" in text
    consent = config(folder, task, eval_args={"confirm_run_unsafe_code": True})
    assert Scorer(consent).score(Holder(KnownModel()), "search")["choice"].value == 1.0


def test_a_metric_without_a_mean_is_jackknifed(folder: Path) -> None:
    docs = [{**doc, "answer": doc["answer"] % 2, "choices": doc["choices"][:2]} for doc in choice_docs(40)]
    metrics = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    write_task(folder, "choice", docs, **CHOICE | {"metric_list": metrics})

    class Half(KnownModel):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            pairs = [request.args[1].split() for request in requests]
            return [
                (-1.0 if (letter == "ab"[int(n) % 2]) == (int(n) % 3 > 0) else -2.0, False)
                for n, letter in pairs
            ]

    score = Scorer(config(folder, {"task": "choice", "metric": "mcc"})).score(Holder(Half()), "search")[
        "choice"
    ]
    gold = [i % 2 for i in range(40)]
    said = [i % 2 if i % 3 > 0 else 1 - i % 2 for i in range(40)]
    table = [
        [sum(g == a and s == b for g, s in zip(gold, said, strict=True)) for b in (0, 1)] for a in (0, 1)
    ]
    (tn, fp), (fn, tp) = table
    mcc = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert score.value == pytest.approx(mcc)
    assert sum(score.items.values()) / 40 == pytest.approx(mcc)
    assert 0.05 < score.stderr < 0.25


def test_documents_need_not_be_flat(tmp_path: Path) -> None:
    docs = [
        {**doc, "meta": {"b": [1, None], "a": {"deep": float(i)}}} for i, doc in enumerate(choice_docs(12))
    ]
    write_task(tmp_path, "choice", docs, **CHOICE | {"metric_list": [{"metric": "acc", **METRIC}]})
    scorer = Scorer(config(tmp_path, {"task": "choice", "metric": "acc"}, holdout=4))
    assert len(scorer.score(Holder(KnownModel()), "search")["choice"].items) == 8
    assert json.dumps(scorer.sizes)
