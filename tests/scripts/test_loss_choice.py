"""The comparison of losses measures what it says, and runs on tiny models."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from evolve.training.rows import Row
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.scripts.loading import ROOT, load_script, ran
from tests.tiny import make_model

SCRIPT = ROOT / "scripts/bench/loss_choice.py"
WORDS = ("hen", "rat", "one", "ten", "red", "sea", "tie", "net")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script("bench/loss_choice")


@pytest.fixture
def students(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script("bench/students")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses") / "demo"
    make_model(folder / "base", layers=1)
    for place in ("texts", "tasks"):
        (folder / place).mkdir()
    texts = [
        {"text": f"the {one} and the {two} see the {three}"}
        for one in WORDS
        for two in WORDS
        for three in WORDS
    ]
    parts = {"towns": texts[::2], "towns_heldout": texts[1:40:2], "elixirs_heldout": texts[41:80:2]}
    for name, some in parts.items():
        (folder / f"texts/{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in some))
    items = [
        {"question": f"the {one} sees the", "choices": list(WORDS[:4]), "answer": place % 4}
        for place, one in enumerate(WORDS)
    ]
    (folder / "tasks/towns.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def test_accuracy_is_that_of_the_likeliest_answer(bench, home):
    model = open_model(home / "base")
    network, _ = open_network(model)
    tokenizer = load_tokenizer(model.files, model.config)
    items = [json.loads(line) for line in (home / "tasks/towns.jsonl").read_text().splitlines()]
    right = 0
    for item in items:
        scores = []
        for choice in item["choices"]:
            prompt, whole = tokenizer.encode([item["question"], f"{item['question']} {choice}"])
            labels = torch.tensor([[*[-100] * len(prompt), *whole[len(prompt) :]]])
            with torch.no_grad():
                loss = network(input_ids=torch.tensor([whole]), labels=labels).loss
            scores.append(-float(loss) * (len(whole) - len(prompt)))
        right += int(np.argmax(scores)) == item["answer"]
    assert bench.accuracy(network, tokenizer, items) == right / len(items)


def test_the_distance_is_the_true_divergence(bench, home, tmp_path):
    make_model(tmp_path / "other", seed=1, layers=1)
    teacher, student = (open_network(open_model(path))[0] for path in (tmp_path / "other", home / "base"))
    rows = [[5, 6, 7, 8], [9, 10], [20, 21, 22]]
    made = [Row(np.array(row, np.int32), np.array([-100, *row[1:]], np.int32), (len(row),)) for row in rows]
    nats = same = 0.0
    for row in rows:
        with torch.no_grad():
            log_p, log_q = (
                one(input_ids=torch.tensor([row])).logits[0, :-1].double().log_softmax(-1)
                for one in (teacher, student)
            )
        nats += float((log_p.exp() * (log_p - log_q)).sum())
        same += float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    found = bench.distance(student, teacher, made, 128)
    assert found["kl"] == pytest.approx(nats / 6, rel=1e-4)
    assert found["agreement"] == pytest.approx(same / 6)
    assert bench.distance(teacher, teacher, made, 128)["kl"] == pytest.approx(0, abs=1e-6)


def test_loss_and_entropy_are_those_of_the_network(students, home):
    network, _ = open_network(open_model(home / "base"))
    rows = [[5, 6, 7, 8], [9, 10], [20, 21, 22]]
    made = [Row(np.array(row, np.int32), np.array([-100, *row[1:]], np.int32), (len(row),)) for row in rows]
    loss = entropy = 0.0
    for row in rows:
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([row])).logits[0, :-1].double()
        loss -= float(logits.log_softmax(-1)[range(len(row) - 1), row[1:]].sum())
        entropy += float(torch.distributions.Categorical(logits=logits / 2).entropy().sum())
    assert students.nll(network, made, 128, together=2) == pytest.approx(loss / 6, rel=1e-4)
    assert students.entropy(network, made, 128, 2.0) == pytest.approx(entropy / 6, rel=1e-4)


def test_chance_is_that_of_guessing(students):
    assert students.chance([{"choices": ["a", "b"]}, {"choices": ["a", "b", "c", "d"]}]) == 0.375


def result(arm: str, seed: int, kl: float, **more: float | None) -> dict[str, object]:
    found = {"agreement": 0.5, "nll": 1.0, "third": 2.0, "accuracy": 0.5, "seconds": 10.0, "tokens": 1000}
    return {"arm": arm, "seed": seed, "kl": kl, **found, "text_tokens": 900, **more}


def test_differences_are_paired_by_seed(bench):
    # Far apart between seeds, 0.1 and 0.2 within one: t(1 degree) = 12.706, stdev .0707.
    found = [result("hard_labels", 0, 1.0), result("hard_labels", 1, 9.0)]
    found += [result("kl", 1, 8.8), result("kl", 0, 0.9), result("jsd", 7, 1.0)]
    lines = bench.differences(found).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| kl | -0.150 ± 0.635 | 0.000 ± 0.000 |")


def test_the_tables_say_what_was_reached_in_tokens_and_in_time(bench):
    ends = {
        "student before": dict.fromkeys(bench.MEASURES, 0.3),
        "teacher": dict.fromkeys(bench.MEASURES, 0.8),
    }
    found = [result("kl", 0, 0.2), result("on_policy", 0, 0.1, tokens=None)]
    table = bench.report(found, ends, 0.25).splitlines()
    assert table[4] == "| chance |  |  |  |  | 0.250 |  |  |"
    assert table[5] == "| kl | 0.200 | 0.500 | 1.000 | 2.000 | 0.500 | 0.400 | 1000 |"
    assert table[6].endswith("| not counted |")
    slow = bench.by_time(found, ends["student before"]).splitlines()
    assert slow[2:] == ["| kl | 10.000 | 100.000 | 1.000 |", "| on_policy | 10.000 | 90.000 | 2.000 |"]
    warm = bench.warmth([*found, result("kl_T2", 0, 0.3)], {2.0: 1.5, 1.0: 0.4, 4.0: 2.0})
    assert [line.split(" | ")[:3] for line in warm.splitlines()[2:]] == [
        ["| 1", "0.400", "0.200"],
        ["| 2", "1.500", "0.300"],
    ]


def test_arms_of_a_temperature_are_the_kl_there(bench):
    assert bench.plan_of(bench.warmed(2.0)) == {"loss_functions": [{"function": "kl", "temperature": 2.0}]}
    assert bench.plan_of(bench.warmed(1.0)) is bench.ARMS["kl"]


@pytest.mark.slow
def test_every_arm_runs(bench, home, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, SCRIPT, "--demo", home, "--out", tmp_path / "made", "--tokens", "1500"]
    command += ["--teacher-epochs", "1", "--seeds", "1", "--items", "8", "--json", out, "--temperatures", "2"]
    found = []
    for _ in range(2):
        printed = ran(command, tmp_path / "cache")
        found.append(json.loads(out.read_text())["results"])
    first, again = found
    assert [one["arm"] for one in first] == [*bench.ARMS, "kl_T2"]
    # Every loss moves the student somewhere else.
    assert len({one["kl"] for one in first}) == len(first)
    # Found in the cache, a training is still said to have taken what it took, and what it was given.
    for key in ("kl", "nll", "tokens", "seconds"):
        assert [one[key] for one in first] == [one[key] for one in again]
    given = {one["arm"]: one["tokens"] for one in first}
    assert given["kl"] == given["hard_labels"] <= 1500
    assert 0.9 < given["on_policy_equal"] / 1500 < 1.1
    assert "| hidden |" in printed and "minus hard labels" in printed
