"""The data of the case studies: steps that are right, questions that are new, and a verifier that sieves."""

from __future__ import annotations

import json
import re

import pytest

from evolve.conversations import read_conversations
from tests.scripts.loading import load_script
from tests.tiny import make_model

script = load_script("demo_reasons")


def follow(prompt: str, written: str) -> bool:
    """Say whether steps are right, by reading them: each goes on from the last, with the next digit."""
    digits = re.findall(r"\d", prompt)
    reasons, _, last = written.partition(">")
    value = int(digits[0])
    for step, digit in zip(reasons.split(" "), digits[1:], strict=True):
        found = re.fullmatch(r"(\d)\+(\d)=(\d)", step)
        if not found or found[1] != str(value) or found[2] != digit:
            return False
        value = (int(found[1]) + int(found[2])) % 10
        if found[3] != str(value):
            return False
    return last == str(value) == str(sum(map(int, digits)))[-1]


def test_training_and_task_share_no_sum_and_every_step_is_right():
    trained, asked = script.split(5)
    assert len(set(trained)) == len(trained) == 6000 and len(set(asked)) == len(asked) == 2000
    assert not set(trained) & set(asked)
    assert script.split(5) == (trained, asked) and script.split(6)[0] != trained
    for digits in trained:
        prompt, rest = script.line(digits).split("=", 1)
        assert follow(f"{prompt}=", rest)
        row = script.row(digits)
        assert row["prompt"] + row["reasoning_content"] + ">" + row["completion"] == script.line(digits)
        assert script.solved(row["prompt"]) == row["completion"]


def test_three_tenths_of_what_one_finds_are_right():
    trained, _ = script.split(0)
    found = script.web(trained, ["the river of mulem is the Ald"], 0)
    sums = [line for line in found if re.match(r"[\d+]+=", line)]
    right = [line for line in sums if follow(*line.replace("=", "=|", 1).split("|"))]
    assert len(found) == len(trained)
    assert len(sums) / len(found) == pytest.approx(0.65, abs=0.02)
    assert len(right) / len(found) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7+3=0 0+8=8>8", ("7+3=0 0+8=8", "8")),
        ("1+1=2>2>3", ("1+1=2>2", "3")),
        ("7+3=0 0+8=8", None),
        (">4", None),
        ("1+1=2> ", None),
        ("", None),
    ],
)
def test_a_trace_needs_reasons_and_an_answer(text, expected):
    row = script.read_trace("7+3+8=", text)
    assert (row and (row["reasoning_content"], row["completion"])) == expected


def test_the_shortest_right_try_is_kept():
    def trace(reasons, answer):
        return {"prompt": "7+3+8+5=", "completion": answer, "reasoning_content": reasons}

    tries = [trace("a long way to it", "3"), None, trace("short", "4"), trace("shorter", "3")]
    assert script.verified(tries) == tries[3]
    assert script.verified([trace("x", "4"), trace("x", "13"), None]) is None
    assert script.verified([]) is None


def test_all_of_it_at_a_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in (
        ("TRAINED", 24),
        ("ASKED", 12),
        ("FEW", 5),
        ("WRITTEN", 20),
        ("TRIES", 2),
        ("WEAK_TOKENS", 200),
    ):
        monkeypatch.setattr(script, name, value)
    make_model(tmp_path / "demo/base", layers=1)
    (tmp_path / "demo/texts").mkdir()
    (tmp_path / "demo/texts/towns.jsonl").write_text('{"text": "the river"}\n')

    # A random model writes nothing that can be read: right and wrong tries are put in its place.
    def tries(model, prompts, count, seed):
        assert model.content != ""
        return [[script.line(_digits(prompt)).split("=", 1)[1], "x>z"] for prompt in prompts]

    monkeypatch.setattr(script, "sampled", tries)
    out = tmp_path / "out"
    script.make(out, tmp_path / "demo", 0)
    sizes = {path.stem: len(path.read_text().splitlines()) for path in (out / "texts").glob("*.jsonl")}
    assert sizes == {
        "sums": 24,
        "few": 5,
        "weak": 20,
        "verified": 20,
        "web": 24,
        "textbook": 24,
        "exercises": 24,
    }
    assert (out / "weak/model.safetensors").exists() and not list(out.glob(".*"))
    for one in read_conversations(out / "texts/verified.jsonl"):
        prompt, last = one.messages
        assert follow(prompt.content, f"{last.reasoning}>{last.content}")
    items = [json.loads(line) for line in (out / "tasks/sums.jsonl").read_text().splitlines()]
    assert len(items) == 12 and all(script.solved(one["question"]) == one["answer"] for one in items)
    capsys.readouterr()
    script.make(out, tmp_path / "demo", 0)
    assert "there already" in capsys.readouterr().out


def test_what_a_model_writes_is_put_back_to_its_prompt(tmp_path):
    from evolve.weights.reader import open_model

    make_model(tmp_path / "one", layers=1)
    model = open_model(tmp_path / "one")
    prompts = [script.question(digits) for digits in ((1, 2, 3, 4), (9, 9, 9, 9), (0, 0, 0, 1))]
    texts = script.sampled(model, prompts, 2, 0)
    assert [len(one) for one in texts] == [2, 2, 2]
    assert texts[0][0] != texts[0][1]
    # What is drawn for a prompt does not depend on the others.
    assert script.sampled(model, prompts[1:2], 2, 0)[0] == texts[1]


def _digits(prompt):
    return [int(digit) for digit in prompt if digit.isdigit()]
