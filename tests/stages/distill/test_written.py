"""Text that a teacher behind an API writes, with reasons, as the data of a distillation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evolve.config.files import pinned
from evolve.config.load import load
from evolve.config.plain import plain
from evolve.errors import CandidateError, ConfigError
from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import Layout, read, rows_of
from evolve.stages.distill.stage import DistillStage
from evolve.training.rows import IGNORED
from evolve.validation import check
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.generate.server import Fault, serving
from tests.small import make_search
from tests.stages.distill.kit import shown
from tests.tiny import make_model

if TYPE_CHECKING:
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


def unique(index: int) -> str:
    return " ".join(f"i{index}word{number}" for number in range(20))


def test_no_row_holds_an_item_of_the_score(
    student: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The search hands its items over; what was removed and what it cost stand beside the model."""
    search = make_search(
        tmp_path,
        **{
            "score.tasks": [{"task": "tiny_choice", "metric": "acc", "items": 30}],
            "score.holdout": {"items": 30},
            "search.sampler": "random",
        },
    )
    items = tmp_path / "tasks" / "tiny_choice.jsonl"
    docs = [json.loads(line) for line in items.read_text().splitlines()]
    texts = ({**doc, "question": unique(number)} for number, doc in enumerate(docs))
    items.write_text("".join(json.dumps(doc) + "\n" for doc in texts))
    asked = ["say the hen", f"say {unique(7)}", "say the rat", f"say {unique(59)} to me"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    with serving(reply=reply) as server:
        written = block(
            server.url,
            tmp_path,
            model="one",
            teacher={
                "kind": "api",
                "base_url": server.url,
                "model": "big",
                "endpoint": "completions",
                "usd_per_million_output_tokens": 1000.0,
            },
            generate={
                "style": "reasoning",
                "prompts": str(tmp_path / "prompts.jsonl"),
                "filters": {"ngram_overlap": 8},
            },
            training_args={"learning_rate": {"low": 1e-4, "high": 1e-3}},
        )
        stages = json.dumps([{"distill": plain(written)}])
        loaded = pinned(check(load(search, [f"pipeline={stages}"]), runs=tmp_path / "runs").loaded)
        [(_, searched)] = loaded.stages
        assert isinstance(searched, DistillBlock) and searched.generate is not None
        banned = searched.generate.filters.banned
        assert banned is not None and banned.content is not None
        lines = Path(banned.path).read_text().splitlines()
        assert len(lines) == 60 and all(any(unique(n) in line for line in lines) for n in range(60))
        fixed = DistillBlock.model_validate(plain(searched, fill=lambda *_: 1e-3))
        caplog.set_level("INFO")
        made = DistillStage.run(fixed, {"one": student}, seed=0)
        used = sum(server.answered.values())
    report = shown(made)
    told = report["written"]
    assert told["counts"]["answers"] == told["asked"] == used == 4
    assert told["counts"]["removed_ngram_overlap"] == told["counts"]["rows"] == 2
    assert report["data"]["documents"] == 2
    assert told["store_tokens"] > 0 and told["store_usd"] > 0
    assert any("4 of 4 done" in text and "USD so far" in text for text in caplog.messages)


def test_items_that_nobody_knows_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    from evolve.cli.build import open_contents

    search = make_search(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "say the hen"}))
    generate = {"prompts": str(tmp_path / "prompts.jsonl"), "filters": {"ngram_overlap": 8}}
    written = block("http://127.0.0.1:1/v1", tmp_path, model="one", generate=generate)
    loaded = load(search, [f"pipeline={json.dumps([{'distill': plain(written)}])}"])
    with pytest.raises(ConfigError, match=r"ngram_overlap: no items of a score .* give filters.banned"):
        open_contents(loaded)
    with pytest.raises(CandidateError, match=r"ngram_overlap.*give banned"):
        DistillStage.run(written, {"one": open_model(str(tmp_path / "one"))}, seed=0)
