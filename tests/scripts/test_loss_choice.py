"""The comparison of losses measures what it says, and runs on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from evolve.training.rows import Row
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.scripts.loading import ROOT, load_script
from tests.tiny import make_model

SCRIPT = ROOT / "scripts/bench/loss_choice.py"
WORDS = ("hen", "rat", "one", "ten", "red", "sea", "tie", "net")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script("bench/loss_choice")


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
    for name, some in (("towns", texts[::2]), ("towns_heldout", texts[1:40:2])):
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


@pytest.mark.slow
def test_every_arm_runs(bench, home, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, SCRIPT, "--demo", home, "--out", tmp_path / "made", "--tokens", "1500"]
    command += ["--teacher-epochs", "1", "--seeds", "1", "--items", "8", "--json", out]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(out.read_text())["results"]
    assert [one["arm"] for one in results] == list(bench.ARMS)
    # Every loss moves the student somewhere else.
    assert len({one["kl"] for one in results}) == len(results)
    assert "| hidden |" in done.stdout
