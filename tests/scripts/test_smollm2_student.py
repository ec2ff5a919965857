"""The benchmark of SmolLM2's student takes the text that it says, cuts what matters least, and goes on."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.stages.distill.student import StudentBlock, made_student
from evolve.weights.content import content_of
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from tests.scripts.loading import ROOT, load_script, ran
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / "scripts/bench/smollm2_student.py"
LINES = [f"the {one} and the {two} see the red sea in the net" for one in "abcdef" for two in "ghijkl"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return load_script("bench/smollm2_student")


def texts_in(folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    files = {}
    for name, some in (("train", LINES[:24]), ("held_out", LINES[24:30]), ("third", LINES[30:])):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return files


def test_definitions_are_read_without_their_sources(bench: Any) -> None:
    obo = '[Term]\nid: HP:1\ndef: "A \\"blue\\" sclera." [PMID:1, "x"]\ncomment: "no"\n\n[Term]\nname: none\n'
    assert bench.definitions(obo) == ['A "blue" sclera.']
    assert bench.paragraphs(["x" * 99, "a" * 100 + "\n\n" + "é" * 500, " " + "b" * 700 + "\n"]) == [
        "a" * 100,
        "b" * 700,
    ]


def test_the_layers_that_go_are_those_that_change_least(bench: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "teacher", layers=4)
    teacher = replace(open_model(folder), content=content_of(folder))
    tokenizer = bench.load_tokenizer(teacher.files, teacher.config)
    rows = bench.rows_of_text(texts_in(tmp_path / "texts")["train"], tokenizer, 64, most=120)
    whole, _ = open_network(teacher)

    def damage(layers: list[int]) -> float:
        cut, _ = open_network(made_student(StudentBlock(keep_layers=layers), teacher))
        nats, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row.tokens.tolist()]).long()
            with torch.no_grad():
                log_p, log_q = (one(input_ids=ids).logits[0, :-1].log_softmax(-1) for one in (whole, cut))
            nats += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(row) - 1
        return nats / count

    expected = list(range(4))
    for _ in range(2):
        rests = [[layer for layer in expected if layer != gone] for gone in expected]
        expected = min(rests, key=damage)
    file = tmp_path / "layers.json"
    assert bench.kept(teacher, rows, 2, tokenizer.size, file) == expected
    # What was chosen is read, not chosen again, unless something else is asked for.
    file.write_text(file.read_text().replace(str(expected), "[0, 3]"))
    assert bench.kept(teacher, rows, 2, tokenizer.size, file) == [0, 3]
    assert len(bench.kept(teacher, rows, 3, tokenizer.size, file)) == 3


def test_bits_per_byte_are_those_of_the_third_text(bench: Any, tmp_path: Path) -> None:
    """All logits are 0, so each token that counts costs log2 of the 128 tokens: 7 bits."""
    folder = make_model(tmp_path / "teacher", layers=1)
    model = open_model(folder)
    blank = replace(model, tensor=lambda name: 0 * model.tensor(name))
    (tmp_path / "tasks").mkdir()
    files = texts_in(tmp_path / "texts")
    yard = bench.Yardstick(blank, files, tmp_path / "tasks", 10_000, 5)
    found = yard.measure(blank)
    texts = [json.loads(line)["text"] for line in files["third"].read_text().splitlines()]
    counted = sum(len(ids) - 1 for ids in yard.tokenizer.documents(texts))
    assert found["third_bpb"] == pytest.approx(7 * counted / sum(map(len, texts)), rel=1e-5)
    assert found["nll"] == pytest.approx(7 * math.log(2), rel=1e-5) and found["kl"] == pytest.approx(
        0, abs=1e-6
    )


def test_recovered_is_the_share_of_the_way_back(bench: Any) -> None:
    measures = {"kl": 0.0, "agreement": 1.0, "nll": 3.0, "third_bpb": 1.0, "medicine": 0.6, "trivia": 0.30}
    cut = {"kl": 2.0, "agreement": 0.2, "nll": 5.0, "third_bpb": 1.01, "medicine": 0.2, "trivia": 0.35}
    one = {"kl": 0.5, "agreement": 0.6, "nll": 2.5, "third_bpb": 1.2, "medicine": 0.3, "trivia": 0.3}
    result = {"arm": "kl", "seed": 0, "seconds": 5.0, **one}
    ends = {"student before": cut, "teacher": measures}
    table = bench.report([result], ends, {"medicine": 0.25, "trivia": 0.25})
    # The third text was never lost, and the teacher is below the cut student in trivia.
    assert table.splitlines()[-1] == "| kl | 0.750 | 0.500 | 1.250 | n/a | 0.250 | n/a | 5.000 |"
    assert "| chance |  |  |  |  | 0.250 | 0.250 |" in table


@pytest.mark.slow
def test_it_runs_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    make_model(tmp_path / "teacher", layers=3)
    long = texts_in(tmp_path / "out")["train"]
    long.write_text(
        "".join(json.dumps({"text": f"{number} {line}"}) + "\n" for number in range(9) for line in LINES)
    )
    (tmp_path / "tasks").mkdir()
    item = {"question": "the red", "choices": ["sea", "net"], "answer": 0}
    (tmp_path / "tasks/colours.jsonl").write_text(json.dumps(item) + "\n")
    command = [sys.executable, SCRIPT, "--teacher", tmp_path / "teacher", "--tasks", tmp_path / "tasks"]
    command += ["--out", tmp_path / "out", "--keep", "2", "--tokens", "6000", "--json", tmp_path / "out.json"]
    found = []
    for _ in range(2):
        printed = ran(command, tmp_path / "cache")
        found.append(json.loads((tmp_path / "out.json").read_text()))
    first, again = found
    assert first["results"] == again["results"] and first["layers"] == again["layers"]
    assert [(one["arm"], one["seed"]) for one in first["results"]] == [
        ("sft", 0),
        ("kl", 0),
        ("sft", 1),
        ("kl", 1),
    ]
    moved = {one["kl"] for one in first["results"]}
    assert len(moved) == 4 and first["ends"]["student before"]["kl"] not in moved
    assert "| recovered |" in printed
