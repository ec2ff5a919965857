"""Text that a teacher behind an API writes, with reasons, as the data of a distillation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import CandidateError
from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import Layout, read, rows_of
from evolve.stages.distill.stage import DistillStage
from evolve.training.rows import IGNORED
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.generate.server import Fault, serving
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_model(tmp_path_factory.mktemp("written") / "student", layers=1)
    return replace(open_model(str(folder)), content=content_of(str(folder)))


def reply(body: dict[str, Any]) -> str:
    asked = str(body["prompt"]).split()[-1]
    return f"<think>\nthe end is {asked}\n</think>\n{asked}"


def block(url: str, folder: Path, **changes: Any) -> DistillBlock:
    plain = {
        "model": "student",
        "teacher": {"kind": "api", "base_url": url, "model": "big", "endpoint": "completions"},
        "generate": {"style": "reasoning", "prompts": str(folder / "prompts.jsonl"), "n": 2},
        "rationale": {"mode": "inline", "weight": 0.5},
        "loss_functions": [{"function": "cross_entropy"}],
        "training_args": {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "warmup_steps": 0},
    }
    return DistillBlock.model_validate({**plain, **changes})


def test_a_teacher_writes_once_what_every_candidate_reads(student: Model, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"say the {word}"}) for word in ("hen", "rat", "sea", "net")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    with serving(reply=reply) as server:
        first = block(server.url, tmp_path)
        assert first.problems() == []
        assert DistillStage.inputs(first) == ("student",)
        models = {"student": student}
        assert DistillStage.check(first, models) == []
        trained = DistillStage.run(first, models, seed=0)
        asked = len(server.bodies)
        assert asked == 8
        # Another weight of the reasons is another training of the same text.
        other = block(server.url, tmp_path, rationale={"mode": "inline", "weight": 0.0})
        again = DistillStage.run(other, models, seed=0)
        assert len(server.bodies) == asked
    assert trained.content != again.content
    log = json.loads((trained.files / "training.json").read_text())["log"]  # type: ignore[operator]
    assert log[0]["loss"] == pytest.approx(
        log[0]["cross_entropy"] + 0.5 * log[0]["reasons_cross_entropy"], rel=1e-4
    )


@pytest.mark.parametrize("budget", [{}, {"tokens": 100_000}])
def test_a_server_that_fails_does_not_decide_what_is_trained_on(
    student: Model, tmp_path: Path, budget: dict[str, int]
) -> None:
    lines = [json.dumps({"prompt": f"say the {word}"}) for word in ("hen", "rat", "sea", "net")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))

    def fault(body: dict[str, Any], number: int) -> Fault | None:
        return Fault("status") if "rat" in str(body["prompt"]) else None

    with serving(reply=reply, fault=fault) as server:
        teacher = {"kind": "api", "base_url": server.url, "model": "big", "endpoint": "completions"}
        failing = block(
            server.url,
            tmp_path,
            teacher={**teacher, "max_tries": 1},
            generate={"style": "reasoning", "prompts": str(tmp_path / "prompts.jsonl"), "budget": budget},
        )
        with pytest.raises(CandidateError, match="The same command asks for the rest"):
            DistillStage.run(failing, {"student": student}, seed=0)


def test_a_budget_that_an_earlier_search_has_used_up_is_named(student: Model, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "say the hen"}))
    (tmp_path / "others.jsonl").write_text(json.dumps({"prompt": "say the rat"}))

    def asked(name: str, tokens: int) -> DistillBlock:
        generate = {"style": "reasoning", "prompts": str(tmp_path / name), "budget": {"tokens": tokens}}
        return block(server.url, tmp_path, generate={**generate, "max_completion_tokens": 20})

    with serving(reply=reply) as server:
        first = DistillStage.run(asked("prompts.jsonl", 2000), {"student": student}, seed=0)
        with pytest.raises(CandidateError, match=r"no room for a first answer: [1-9]"):
            DistillStage.run(asked("others.jsonl", 5), {"student": student}, seed=0)
        # What is there costs nothing.
        again = DistillStage.run(asked("prompts.jsonl", 5), {"student": student}, seed=0)
    assert first.content == again.content


def test_reasons_are_marked_token_by_token(student: Model, tmp_path: Path) -> None:
    from evolve.generate.blocks import RationaleBlock

    row = {"prompt": "the sea ", "completion": "ten", "reasoning_content": "one and net"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    tokenizer = load_tokenizer(student.files, student.config)
    decode = tokenizer.backend.decode
    inline = RationaleBlock(mode="inline")
    [document], _ = read(tmp_path / "rows.jsonl", tokenizer, 100, rationale=inline)
    [packed] = rows_of([document], Layout(100)).rows
    assert packed.reasons is not None
    assert decode(packed.tokens[packed.reasons].tolist()) == "<think>\none and net\n</think>\n"
    counted = packed.labels != IGNORED
    assert decode(packed.tokens[counted & ~packed.reasons].tolist()) == "ten"
    [plain], _ = read(tmp_path / "rows.jsonl", tokenizer, 100)
    assert plain.reasons is None
    assert decode(list(plain.tokens)) == "the sea ten"


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    def said(**changes: Any) -> str:
        return " ".join(text for _, text in block("http://127.0.0.1:1/v1", tmp_path, **changes).problems())

    assert "either dataset" in said(generate=None)
    assert "kind: api" in said(teacher=None)
    assert "distribution" in said(loss_functions=[{"function": "kl"}])
