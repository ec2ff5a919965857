"""The benchmark of reasons compares at equal tokens, scores what it says, and goes on where it stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from evolve.stages.distill.data import Layout, read, rows_of
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.scripts.loading import ROOT, load_script, ran
from tests.tiny import make_model

data = load_script("demo_reasons")
SCRIPT = ROOT / "scripts/bench/reasons.py"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script("bench/reasons")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasons")
    make_model(folder / "demo/base", layers=1)
    trained, asked = data.split(0)
    for name, count in (("sums", 60), ("few", 4), ("weak", 30)):
        data.write_lines(folder / f"data/texts/{name}.jsonl", map(data.row, trained[:count]))
    data.save_task(asked[:30], folder / "data/tasks")
    return folder


def test_every_arm_sees_the_same_tokens(home, bench):
    student = replace(open_model(home / "demo/base"), content=content_of(home / "demo/base"))
    tokenizer = load_tokenizer(student.files, student.config)
    tokens = 3000
    for part in (
        bench.Part("sums"),
        bench.Part("sums", "none"),
        bench.Part("sums", "shuffled"),
        bench.Part("few"),
    ):
        block = bench.block_of(part, home / "data/texts", student, tokens, 0)
        documents, _ = read(block.dataset.path, tokenizer, bench.LENGTH, rationale=block.rationale)
        epochs = block.training_args.num_train_epochs
        layout = Layout(bench.LENGTH, block.dataset.max_tokens, epochs=epochs)
        seen = sum(len(row) for row in rows_of(documents, layout).rows)
        longest = max(len(one.tokens) for one in documents)
        assert tokens - epochs * longest <= seen <= tokens
        assert seen >= 0.7 * tokens


@pytest.mark.slow
def test_it_runs_and_goes_on(home, bench, tmp_path):
    def run():
        command = [
            sys.executable,
            SCRIPT,
            "--demo",
            home / "demo",
            "--data",
            home / "data",
            "--tokens",
            "600",
        ]
        command += ["--groups", "orca", "--seeds", "1", "--items", "20", "--json", tmp_path / "out.json"]
        printed = ran(command, tmp_path / "cache")
        return json.loads((tmp_path / "out.json").read_text()), printed

    first, said = run()
    assert {"machine", "versions", "tokens", "items", "base", "results"} <= first.keys()
    assert [one["arm"] for one in first["results"]] == list(bench.ARMS["orca"])
    assert "| orca | weak, then strong |" in said
    stages = tmp_path / "cache/evolve/stages"
    kept = {path.name: path.stat().st_mtime_ns for path in stages.glob("*/model.safetensors")}
    again, _ = run()
    assert again["results"] == first["results"]
    assert {path.name: path.stat().st_mtime_ns for path in stages.glob("*/model.safetensors")} == kept
