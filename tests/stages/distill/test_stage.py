"""The distill stage, whole: built, kept, shared, switched, refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from evolve.cli.main import cli
from evolve.config.plain import plain
from evolve.errors import CandidateError
from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.data import read
from evolve.stages.distill.stage import DistillStage
from evolve.stages.pipeline import build
from evolve.training.rows import IGNORED
from evolve.types import Recipe
from evolve.weights.content import content_of, file_content
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from evolve.weights.writer import write_model
from tests.small import WORDS
from tests.stages.distill.kit import block, models_of, run, same, tensors
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model


pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "warmup_steps": 0}


def kl_of(student: Model, teacher: Model, home: Path) -> float:
    """Over the completions, in float64, without anything of the training's code but the data."""
    from evolve.weights.network import open_network

    tokenizer = load_tokenizer(student.files, student.config)
    documents, _ = read(home / "data.jsonl", tokenizer, 48)
    ours, theirs = (open_network(model)[0].double() for model in (student, teacher))
    total, count = 0.0, 0
    with torch.no_grad():
        for one in documents:
            ids = torch.tensor([one.tokens])
            log_q = torch.log_softmax(ours(input_ids=ids).logits[0, :-1], -1)
            log_p = torch.log_softmax(theirs(input_ids=ids).logits[0, :-1], -1)
            counted = torch.tensor([label != IGNORED for label in one.labels[1:]])
            total += float(((log_p.exp() * (log_p - log_q)).sum(-1) * counted).sum())
            count += int(counted.sum())
    return total / count


def test_the_student_comes_nearer_to_the_teacher(home: Path) -> None:
    models = models_of(home)
    before = kl_of(models["student"], models["teacher"], home)
    trained = run(home)
    assert kl_of(trained, models["teacher"], home) < 0.9 * before
    log = json.loads((trained.files / "training.json").read_text())  # type: ignore[operator]
    # The first line of the log is the distance at the start, over the first step's rows.
    assert log["log"][0]["kl"] == pytest.approx(before, rel=0.2)
    assert log["log"][-1]["kl"] < log["log"][0]["kl"]


def test_the_same_values_are_trained_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(home)
    monkeypatch.setattr("evolve.training.trainer.train", lambda *_: pytest.fail("trained again"))
    # What it is called, where the data is, and a loss of weight 0 decide nothing.
    (home / "copy.jsonl").write_bytes((home / "data.jsonl").read_bytes())
    losses = [{"function": "kl", "weight": 1.0}, {"function": "tvd", "weight": 0.0}]
    second = run(home, name="small", loss_functions=losses)
    assert same(first, second)
    assert first.content == second.content
    assert first.content.startswith("stage:")


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tensors(run(home))
    other = tensors(run(home, seed=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "again"))
    again = tensors(run(home))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_adapters_are_merged_and_what_is_frozen_stays(home: Path) -> None:
    student = tensors(models_of(home)["student"])
    adapted = tensors(run(home, peft_config={"r": 4}))
    changed = {name for name in student if not torch.equal(student[name], adapted[name])}
    assert changed == {name for name in student if name.endswith("_proj.weight")}
    frozen = tensors(run(home, frozen_res=["embed_tokens", "norm"]))
    changed = {name for name in student if not torch.equal(student[name], frozen[name])}
    assert changed == {name for name in student if name.endswith("_proj.weight")}
    with pytest.raises(CandidateError, match="no parameter matches 'nothing'"):
        run(home, frozen_res=["nothing"])


def test_hidden_states_and_text_of_the_student_and_of_the_teacher(home: Path) -> None:
    models = models_of(home)
    before = kl_of(models["student"], models["teacher"], home)
    data = {"path": str(home / "data.jsonl"), "max_length": 48, "packing": False}
    losses = [{"function": "reverse_kl"}, {"function": "hs_cosine", "weight": 0.1}]
    written = {"max_new_tokens": 6}
    own = run(home, dataset=data, lmbda=1.0, generation=written, loss_functions=losses)
    assert kl_of(own, models["teacher"], home) < before
    theirs = run(home, dataset=data, seq_kd=True, generation=written)
    assert kl_of(theirs, models["teacher"], home) < before
    assert not same(own, theirs)


def test_on_its_own_text_only_losses_with_a_teacher_count(home: Path) -> None:
    data = {"path": str(home / "data.jsonl"), "max_length": 48, "packing": False}
    settings = {"dataset": data, "generation": {"max_new_tokens": 4}}
    alone = [{"function": "reverse_kl", "weight": 1.0}]
    both = [{"function": "cross_entropy", "weight": 3.0}, *alone]
    # One loss alone: what the other weighs is no part of the sum there.
    found = run(home, lmbda=1.0, loss_functions=both, **settings)
    assert same(found, run(home, lmbda=1.0, loss_functions=alone, **settings))
    log = json.loads((found.files / "training.json").read_text())["log"]  # type: ignore[operator]
    assert all("cross_entropy" not in line and line["loss"] == line["reverse_kl"] for line in log)
    mixed = run(home, lmbda=0.5, loss_functions=both, **settings)
    log = json.loads((mixed.files / "training.json").read_text())["log"]  # type: ignore[operator]
    assert {"cross_entropy" in line for line in log} == {True, False}
    # Without a teacher the student's text teaches nothing: the recipe is that of the text.
    text = [{"function": "cross_entropy"}, {"function": "kl", "weight": 0.0}]
    assert same(
        run(home, lmbda=0.5, loss_functions=text, **settings), run(home, loss_functions=text, **settings)
    )
    effective = DistillBlock.effective({"lmbda": 0.5, "generation": {"top_k": 3}, "loss_functions": text})
    assert effective == {"loss_functions": text[:1]}
    refused = block(home, lmbda=1.0, loss_functions=text[:1], **settings).problems()
    assert [path for path, _ in refused] == [("lmbda",)]
    ranged = block(home, lmbda={"low": 0.0, "high": 1.0}, loss_functions=text[:1], **settings)
    assert ranged.problems() == []


@pytest.mark.parametrize("way", ["auto", "spans"])
def test_a_teacher_with_the_vocabulary_from_before_an_extension(home: Path, way: str) -> None:
    trained = run(home, teacher={"kind": "hf", "model": "other"}, alignment=way)
    log = json.loads((trained.files / "training.json").read_text())["log"]  # type: ignore[operator]
    assert log[-1]["kl"] < 0.9 * log[0]["kl"]
    assert all(line["not_aligned"] == 0 for line in log)


def test_reasons_have_their_weight_with_another_tokenizer_too(home: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    with (tmp_path / "reasons.jsonl").open("w") as file:
        for _ in range(8):
            words = [" ".join(draw.choices(WORDS, k=3)) for _ in range(3)]
            row = {"prompt": words[0], "completion": words[1], "reasoning_content": words[2]}
            file.write(json.dumps(row) + "\n")

    def trained(weight: float) -> Model:
        return run(
            home,
            teacher={"kind": "hf", "model": "other"},
            dataset={"path": str(tmp_path / "reasons.jsonl"), "max_length": 64},
            rationale={"mode": "inline", "weight": weight},
        )

    half = trained(0.5)
    log = json.loads((half.files / "training.json").read_text())["log"]  # type: ignore[operator]
    for line in log:
        assert line["reasons_kl"] > 0
        assert line["loss"] == pytest.approx(line["kl"] + 0.5 * line["reasons_kl"], rel=1e-4)
    assert not same(half, trained(1.0))
    assert not same(half, trained(0.0))


def test_one_document_that_does_not_align_ends_no_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evolve.stages.distill.alignment import Translator
    from evolve.weights.token_bytes import NotItself

    asked = []
    original = Translator.document

    def document(self: Translator, tokens: Any) -> Any:
        asked.append(1)
        if len(asked) <= refused:
            raise NotItself("cut within a character")
        return original(self, tokens)

    monkeypatch.setattr(Translator, "document", document)
    settings = {
        "teacher": {"kind": "hf", "model": "other"},
        "dataset": {"path": str(home / "data.jsonl"), "max_length": 48, "packing": False},
        "training_args": {"learning_rate": 1e-3, "per_device_train_batch_size": 1},
    }
    refused = 2
    trained = run(home, **settings)
    log = json.loads((trained.files / "training.json").read_text())["log"]  # type: ignore[operator]
    assert [line["not_aligned"] for line in log[:3]] == [1.0, 1.0, 0.0]
    assert [line["loss"] > 0 for line in log[:3]] == [False, False, True]
    refused = 10**9
    with pytest.raises(CandidateError, match=r"no document could be aligned.*cut within a character"):
        run(home, seed=1, **settings)


def test_a_captured_teacher_is_the_live_one(home: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    text = tmp_path / "text.jsonl"
    draw = random.Random(1)
    lines = (json.dumps({"text": " ".join(draw.choices(WORDS, k=6))}) for _ in range(12))
    text.write_text("\n".join(lines))
    # All tokens are kept, so nothing is left for the tail.
    command = ["capture", str(home / "teacher"), str(tmp_path / "out"), "--data", str(text), "--top-k", "128"]
    assert CliRunner().invoke(cli, [*command, "--max-length", "48"]).exit_code == 0
    data = {"path": str(text), "max_length": 48}
    captured = {"kind": "dataset", "path": str(tmp_path / "out" / "capture.json")}
    live, kept = (
        json.loads((model.files / "training.json").read_text())["log"]  # type: ignore[operator]
        for model in (run(home, dataset=data), run(home, dataset=data, teacher=captured))
    )
    assert [line["kl"] for line in kept] == pytest.approx([line["kl"] for line in live], abs=2e-3)


def test_the_text_is_the_one_that_the_recipe_means(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes((home / "data.jsonl").read_bytes())
    meant = {"path": str(path), "content": file_content(path), "max_length": 48}
    first = run(home, dataset=meant)
    # Kept: the file itself is not needed again.
    path.write_text('{"prompt": "the hen", "completion": " and the rat"}\n')
    assert run(home, dataset=meant).content == first.content
    with pytest.raises(CandidateError, match="it changed, or another file is there"):
        run(home, dataset=meant, seed=1)
    # Whoever says nothing of the content means that of now.
    assert run(home, dataset={"path": str(path), "max_length": 48}).content != first.content


def test_a_capture_says_its_temperatures(home: Path, tmp_path: Path) -> None:
    gone = block(home, teacher={"kind": "dataset", "path": str(tmp_path / "capture.json")})
    assert [path for path, _ in DistillStage.check(gone, models_of(home))] == ["teacher.path"]
    key = {"teacher": "", "tokenizer": "", "data": "", "top_k": 4, "temperatures": [1.0, 2.0]}
    key |= {"max_length": 48, "vocabulary": 128, "max_tokens": None, "source": "hf"}
    manifest = {"format": 1, "key": key, "shards": []}
    (tmp_path / "capture.json").write_text(json.dumps(manifest))
    for value, good in (
        (1.0, True),
        ({"choices": [1.0, 2.0]}, True),
        ({"choices": [1.0, 3.0]}, False),
        (3, False),
    ):
        losses = [{"function": "kl", "temperature": value}]
        asked = block(
            home, teacher={"kind": "dataset", "path": str(tmp_path / "capture.json")}, loss_functions=losses
        )
        assert asked.problems() == []
        found = DistillStage.check(asked, models_of(home))
        assert [path for path, _ in found] == ([] if good else ["loss_functions.0.temperature"])


def test_a_config_with_ranges_is_a_space(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    monkeypatch.chdir(home)
    config = {
        "models": {"student": "student", "teacher": "teacher"},
        "pipeline": [
            {
                "distill": {
                    "model": "student",
                    "enabled": {"choices": [False, True]},
                    "teacher": {"kind": "hf", "model": "teacher"},
                    "dataset": {"path": "data.jsonl", "max_length": 48},
                    "lmbda": 0,
                    "loss_functions": [
                        {"function": "cross_entropy"},
                        {"function": "kl", "weight": {"low": 0.0, "high": 4.0}, "temperature": 2.0},
                    ],
                    "peft_config": {"r": {"choices": [2, 4]}},
                    "training_args": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
                }
            }
        ],
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(config))
    from evolve.config.load import load
    from evolve.space.space import derive

    genes = [gene.name for gene in derive(load(tmp_path / "space.yaml")).genes]
    assert genes == [
        "distill.enabled",
        "distill.loss_functions.kl.weight",
        "distill.peft_config.r",
        "distill.training_args.learning_rate",
    ]
    result = CliRunner().invoke(cli, ["build", str(tmp_path / "space.yaml"), str(tmp_path / "out")])
    assert result.exit_code == 2


def test_a_merge_is_student_and_the_teacher_is_an_output_too(home: Path, tmp_path: Path) -> None:
    """As if both had been built first, written, and given by hand."""
    make_model(tmp_path / "second", seed=7, layers=1)
    make_model(tmp_path / "expert", seed=8, layers=2)
    places = {"student": home / "student", "second": tmp_path / "second"}
    places |= {"teacher": home / "teacher", "expert": tmp_path / "expert"}
    models = {
        name: replace(open_model(str(place)), content=content_of(str(place)))
        for name, place in places.items()
    }

    def merge(name: str, *parts: str) -> dict[str, Any]:
        entries = [{"model": part, "parameters": {"weight": 0.5}} for part in parts]
        return {"merge": {"name": name, "merge_method": "linear", "models": entries, "dtype": "float32"}}

    stages = [merge("mixed", "student", "second"), merge("wise", "teacher", "expert")]
    changes = {"model": "mixed", "teacher": {"kind": "hf", "model": "wise"}, "training_args": QUICK}
    data = {"path": str(home / "data.jsonl"), "max_length": 48, "max_tokens": 60}
    last = {"distill": plain(block(home, dataset=data, **changes))}
    contents = {name: model.content for name, model in models.items()}
    whole = build(Recipe.make(contents, [*stages, last]), models)
    alone = {}
    for stage in stages:
        name = stage["merge"]["name"]
        used = {entry["model"] for entry in stage["merge"]["models"]}
        made = build(Recipe.make({one: contents[one] for one in used}, [stage]), models)
        write_model(made, tmp_path / name)
        alone[name] = replace(open_model(str(tmp_path / name)), content=content_of(str(tmp_path / name)))
    start = tensors(alone["mixed"])
    expected = tensors(DistillStage.run(block(home, dataset=data, **changes), alone, seed=0))
    found = tensors(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert any(not torch.equal(value, start[name]) for name, value in found.items())
