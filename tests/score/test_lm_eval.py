"""lm-eval's own simple_evaluate as the oracle, on a tiny transformers model."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from evolve.score.evaluate import evaluate_folder, main
from evolve.score.items import item_key
from evolve.score.scorer import Scorer
from evolve.types import outcome_from_json
from tests.score.local_tasks import (
    CHOICE,
    GENERATE,
    METRIC,
    ROLLING,
    Holder,
    choice_docs,
    config,
    generate_docs,
    rolling_docs,
    write_task,
)
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

TASKS = {
    "choice": "acc",
    "shots": "acc_norm",
    "generate": "exact_match",
    "plain": "acc",
    "rolling": "bits_per_byte",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("oracle")
    make_model(home / "model")
    folder = home / "tasks"
    write_task(folder, "choice", choice_docs(30), **CHOICE)
    write_task(
        folder,
        "shots",
        choice_docs(30),
        train=choice_docs(6, start=50),
        **CHOICE,
        num_fewshot=2,
        fewshot_config={"sampler": "first_n"},
        description="Pick one.\n\n",
    )
    # A reply that a random model gives now and then, so that the metric is not 0 everywhere.
    write_task(
        folder,
        "generate",
        generate_docs(16),
        **GENERATE
        | {
            "doc_to_target": "{{reply[:0]}}",
            "filter_list": [
                {
                    "name": "start",
                    "filter": [
                        {"function": "regex", "regex_pattern": r"^\s*([a-m]?)"},
                        {"function": "take_first"},
                    ],
                }
            ],
        },
    )
    write_task(
        folder,
        "plain",
        [{"question": f"{i} and", "reply": "a"} for i in range(12)],
        output_type="loglikelihood",
        doc_to_text="question",
        doc_to_target="reply",
        metric_list=[
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", **METRIC},
        ],
    )
    write_task(folder, "rolling", rolling_docs(10), **ROLLING)
    return home


@pytest.fixture(scope="module")
def lm(home: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(home / "model"), batch_size=8, device="cpu", dtype="float32")


def scorer(home: Path, tasks: dict[str, str], holdout: int = 4) -> Scorer:
    blocks = [{"task": name, "metric": metric, "items": 6} for name, metric in tasks.items()]
    return Scorer(config(home / "tasks", *blocks, holdout=holdout))


def test_every_item_equals_lm_eval(home: Path, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours = scorer(home, TASKS)
    monkeypatch.chdir(home / "tasks")
    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    docs = {name: list(task.eval_docs) for name, task in manager.load(list(TASKS))["tasks"].items()}
    spread = set()
    for split in ("search", "holdout"):
        scores = ours.score(Holder(lm), split)
        positions = {
            name: [i for i, doc in enumerate(docs[name]) if item_key(doc) in scores[name].items]
            for name in TASKS
        }
        results = simple_evaluate(
            lm, tasks=list(TASKS), samples=positions, task_manager=manager, bootstrap_iters=1000
        )
        for name, metric in TASKS.items():
            theirs = {item_key(sample["doc"]): sample[metric] for sample in results["samples"][name]}
            assert set(theirs) == set(scores[name].items)
            if name != "rolling":
                assert scores[name].items == theirs
            (key,) = (key for key in results["results"][name] if key.startswith(f"{metric},"))
            assert scores[name].value == pytest.approx(results["results"][name][key], rel=1e-5)
            error = results["results"][name][key.replace(metric, f"{metric}_stderr")]
            if error != "N/A":
                assert scores[name].stderr == pytest.approx(error, rel=1e-6)
            spread.add(scores[name].value)
    assert len(spread) > 4, "every score is the same: this would hide a mix-up"


def test_prompts_equal_lm_eval(home: Path, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(home / "tasks")
    theirs = set()
    for name, task in (
        TaskManager(include_path=".", include_defaults=False).load(list(TASKS))["tasks"].items()
    ):
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        theirs |= {json.dumps([name, request.request_type, request.args]) for request in task.instances}
    ours = scorer(home, TASKS)
    found = {json.dumps(request) for split in ("search", "holdout") for request in ours.requests(split)}
    assert len(found) == (6 + 4) * (4 + 4 + 1 + 1 + 1)
    assert found <= theirs


def test_perplexities_have_errors(home: Path, lm: Any) -> None:
    tasks = {"plain": "perplexity", "rolling": "word_perplexity"}
    for score in scorer(home, tasks).score(Holder(lm), "search").values():
        assert sum(score.items.values()) / len(score.items) == pytest.approx(score.value)
        assert 0 < score.stderr < math.inf


def test_a_folder_alone_and_in_its_own_process(home: Path, lm: Any, tmp_path: Path) -> None:
    ours = scorer(home, TASKS)
    block = ours._config
    found = evaluate_folder(home / "model", block, splits=("search", "holdout"), scorer=ours)
    for split in ("search", "holdout"):
        for name, score in ours.score(Holder(lm), split).items():
            assert found[split][name].value == pytest.approx(score.value, rel=1e-5)
    (tmp_path / "score.json").write_text(block.model_dump_json())
    out = tmp_path / "result.json"
    arguments = ["--folder", str(home / "model"), "--config", str(tmp_path / "score.json"), "--out", str(out)]
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    assert result["fingerprint"] == ours.fingerprint and result["backend"] == "hf"
    for split in ("search", "holdout"):
        outcome = outcome_from_json(result["splits"][split])
        assert outcome.tasks == found[split]


def test_what_the_module_says_of_bad_input(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = config(home / "tasks", {"task": "choice", "metric": "f1"}).model_dump_json()
    (tmp_path / "score.json").write_text(block)
    out = tmp_path / "result.json"
    arguments = ["--folder", str(home / "model"), "--config", str(tmp_path / "score.json"), "--out", str(out)]
    assert main(arguments) == 2
    assert "no metric 'f1'" in capsys.readouterr().err
    assert not out.exists()
