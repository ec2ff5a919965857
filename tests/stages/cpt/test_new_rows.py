"""Training of the rows that a stage vocab has added, and what happens where there are none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from evolve.config.files import pinned
from evolve.config.load import load
from evolve.errors import CandidateError
from evolve.space.space import derive
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.stage import CptStage
from evolve.stages.pipeline import build, check
from evolve.stages.vocab.block import VocabBlock
from evolve.stages.vocab.stage import VocabStage
from evolve.weights.content import content_of, file_content
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model

NEW = 8
TEXTS = ["the zebra and the quagga met a zebra near the quagga river"] * 40
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "domain.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def extended(folder: Path, text: Path, *, tied: bool) -> Model:
    make_model(folder / "base", tied=tied)
    block = VocabBlock.model_validate(
        {
            "model": "base",
            "dataset": {"path": str(text)},
            "num_new_tokens": NEW,
            "selection": {"min_frequency": 4},
            "pad_to_multiple_of": 16,
        }
    )
    return VocabStage.run(block, {"base": open_model(folder / "base")}, seed=0)


def trained(
    start: Model, text: Path, phases: list[dict[str, Any]], peft: dict[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    block = CptBlock.model_validate(
        {
            "model": "extended",
            "dataset": {"path": str(text), "content": file_content(text), "max_length": 48},
            "phases": phases,
            # Everything that moves a weight without a gradient.
            "training_args": {
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 2,
                "weight_decay": 0.1,
                "adam_beta1": 0.95,
                "layerwise_lr_decay": 0.9,
            },
            "peft_config": peft,
        }
    )
    assert block.problems() == []
    found = CptStage.run(block, {"extended": start}, seed=0)
    assert found.new_tokens == start.new_tokens
    return {name: found.tensor(name).clone() for name in found.specs}


def tables(start: Model) -> list[str]:
    return [name for name in TABLES if name in start.specs]


@pytest.mark.parametrize("tied", [True, False])
def test_only_new_rows_move(tmp_path: Path, text: Path, tied: bool) -> None:
    start = extended(tmp_path, text, tied=tied)
    assert start.new_tokens == range(128, 128 + NEW)
    assert start.config["vocab_size"] == 144, "there are padding rows behind them"
    assert len(tables(start)) == (1 if tied else 2)
    after = trained(start, text, [{"until": 1.0, "train": "new_embeddings"}])
    for name, value in after.items():
        moved = value != start.tensor(name)
        if name in tables(start):
            assert moved.any(1).nonzero().flatten().tolist() == list(start.new_tokens), name
        else:
            assert not moved.any(), name


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_rest_though_they_have_momentum(tmp_path: Path, text: Path, tied: bool) -> None:
    start = extended(tmp_path, text, tied=tied)
    first = {"until": 0.5, "train": "all"}
    new = trained(start, text, [first, {"until": 1.0, "train": "new_embeddings"}])
    other = trained(start, text, [first, {"until": 1.0, "train": ["norm"]}])
    for name in tables(start):
        moved = (new[name] != other[name]).any(1).nonzero().flatten().tolist()
        assert moved == list(start.new_tokens), name
        # The first phase has moved them all.
        assert bool(
            (other[name][: start.new_tokens.start] != start.tensor(name)[: start.new_tokens.start]).any()
        )


def test_new_rows_then_the_tables_then_the_body(tmp_path: Path, text: Path) -> None:
    start = extended(tmp_path, text, tied=False)
    phases = [
        {"until": 0.3, "train": "new_embeddings"},
        {"until": 0.6, "train": "embeddings"},
        {"until": 1.0, "train": "all"},
    ]

    def moved(parts: int) -> set[str]:
        cut = [*phases[: parts - 1], {**phases[parts - 1], "until": 1.0}]
        after = trained(start, text, cut)
        found = {name for name in after if not torch.equal(after[name], start.tensor(name))}
        rows = (after[TABLES[0]] != start.tensor(TABLES[0])).any(1).sum()
        return found | {"old rows"} if rows > NEW else found

    assert moved(1) == set(TABLES)
    assert moved(2) == {*TABLES, "old rows"}
    assert moved(3) == {*start.specs, "old rows"}


def test_new_rows_beside_an_adapter(tmp_path: Path, text: Path) -> None:
    """The tables are trained whole beside it, where the adapter is told so."""
    start = extended(tmp_path, text, tied=False)
    new = [{"until": 1.0, "train": "new_embeddings"}]
    with pytest.raises(CandidateError, match="nothing is trained in step 1 of"):
        trained(start, text, new, peft={"r": 2})
    after = trained(start, text, new, peft={"r": 2, "modules_to_save": ["embed_tokens", "lm_head"]})
    for name, value in after.items():
        moved = (value != start.tensor(name)).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
        assert moved == (list(start.new_tokens) if name in TABLES else []), name


def config(folder: Path, text: Path, stages: list[dict[str, Any]], **models: str) -> Any:
    path = folder / "space.yaml"
    names = {"base": str(folder / "base"), **models}
    path.write_text(yaml.safe_dump({"models": names, "pipeline": stages}))
    return pinned(load(path))


def vocab(text: Path, **keys: Any) -> dict[str, Any]:
    block = {
        "name": "extended",
        "model": "base",
        "dataset": {"path": str(text)},
        "num_new_tokens": NEW,
        "selection": {"min_frequency": 4},
        "pad_to_multiple_of": 16,
    }
    return {"vocab": {**block, **keys}}


def cpt(text: Path, **keys: Any) -> dict[str, Any]:
    block = {
        "model": "extended",
        "dataset": {"path": str(text), "max_length": 48},
        "phases": [{"until": {"low": 0.0, "high": 0.5}, "train": "new_embeddings"}, {"until": 1.0}],
    }
    return {"cpt": {**block, **keys}}


def test_without_a_stage_that_adds_them_it_is_an_error(tmp_path: Path, text: Path) -> None:
    make_model(tmp_path / "base")
    models = {"base": open_model(tmp_path / "base"), "other": open_model(tmp_path / "base")}
    message = "a stage vocab has added, and the start comes from none"

    def found(*stages: dict[str, Any]) -> dict[str, str]:
        return dict(check(config(tmp_path, text, list(stages), other=str(tmp_path / "base")).stages, models))

    assert message in found(cpt(text, model="base"))["pipeline.0.cpt.phases.0.train"]
    merge = {
        "name": "merged",
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in ("extended", "other")],
        "tokenizer": {"source": "union"},
    }
    between = found(vocab(text), {"merge": merge}, cpt(text, model="merged"))
    assert message in between["pipeline.2.cpt.phases.0.train"]
    for enabled in (True, False, {"choices": [False, True]}):
        assert found(vocab(text, enabled=enabled), cpt(text)) == {}
    assert found(vocab(text), cpt(text, name="first"), cpt(text, model="first")) == {}


@pytest.mark.parametrize("named", [True, False])
def test_where_the_stage_is_off_the_phase_is_gone(tmp_path: Path, text: Path, named: bool) -> None:
    make_model(tmp_path / "base")
    parents = {"base": open_model(tmp_path / "base")}
    first, second = vocab(text, enabled={"choices": [False, True]}), cpt(text)
    if not named:
        del first["vocab"]["name"], second["cpt"]["model"]
    space = derive(config(tmp_path, text, [first, second]))
    switch, until = (gene.name for gene in space.genes)
    contents = {"base": content_of(tmp_path / "base")}

    def recipe(on: float, end: float) -> Any:
        return space.recipe({switch: on, until: end}, contents)

    assert recipe(0.0, 0.1).hash == recipe(0.0, 0.4).hash
    assert [*recipe(0.0, 0.1).pipeline[0]] == ["cpt"]
    assert recipe(0.0, 0.1).pipeline[0]["cpt"]["phases"] == [{"until": 1}]
    assert recipe(1.0, 0.1).hash != recipe(1.0, 0.4).hash
    assert build(recipe(0.0, 0.1), parents, folder=tmp_path).config["vocab_size"] == 128
    assert build(recipe(1.0, 0.4), parents, folder=tmp_path).config["vocab_size"] == 144
