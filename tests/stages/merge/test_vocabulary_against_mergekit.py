"""Merges of models with different vocabularies, ours and those of mergekit 0.1.5, compared token by token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

from evolve.stages.merge import MergeStage
from evolve.weights.reader import open_model
from evolve.weights.tables import vocabulary_tables
from tests.stages.merge import mergekit
from tests.stages.merge.memory import block
from tests.stages.merge.vocabularies import transformers_tokenizer
from tests.tiny import make_model
from tests.tokenizers import SPECIAL, byte_level, bytes_alphabet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.slow

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
MORE = [*MERGES, ("a", "n"), ("an", "d")]
# Merges, added tokens, rows beyond the ids.
MODELS: dict[str, tuple[Any, tuple[str, ...], int]] = {
    "base": (MERGES, ("<|im_end|>",), 0),
    "one": (MERGES, ("<|im_start|>", "<|im_end|>", "<one>"), 11),
    "two": (MORE, ("<two>", "<|im_start|>"), 0),
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama-tied": {"arch": "llama", "tied": True},
    "llama-untied": {"arch": "llama", "tied": False},
    "gpt2": {"arch": "gpt2", "tied": True},
    "qwen2": {"arch": "qwen2", "tied": False},
}


def make(root: Path, **options: Any) -> dict[str, Path]:
    folders = {}
    for seed, (name, (merges, added, spare)) in enumerate(MODELS.items()):
        tokens = [*SPECIAL, *bytes_alphabet(), *("".join(pair) for pair in merges)]
        folders[name] = make_model(
            root / name, seed=seed, layers=1, vocab=len(tokens) + len(added) + spare, **options
        )
        byte_level(
            folders[name],
            {token: number for number, token in enumerate(tokens)},
            merges,
            added=added,
            tokenizer_class="GPT2Tokenizer",
        )
    return folders


def recipes() -> dict[str, dict[str, Any]]:
    linear: dict[str, Any] = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1 + place}} for place, name in enumerate(MODELS)],
    }
    arithmetic: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": name, "parameters": {"weight": 0.6}} for name in ("one", "two")],
    }
    ties = {**arithmetic, "merge_method": "ties", "parameters": {"density": 1.0}}
    slerp = {
        "merge_method": "slerp",
        "base_model": "one",
        "models": [{"model": "one"}, {"model": "two"}],
        "parameters": {"t": 0.3},
    }
    row = {"kind": "model_token", "model": "two", "token_id": 9}
    named = {"kind": "model_token", "model": "one", "token": "<one>"}
    return {
        "union": {**linear, "tokenizer": {"source": "union"}},
        "legacy union": {**linear, "tokenizer_source": "union"},
        "union with a base": {**arithmetic, "tokenizer": {"source": "union"}},
        "union, ties": {**ties, "tokenizer": {"source": "union"}},
        "union, slerp": {**slerp, "tokenizer": {"source": "union"}},
        "base": {**arithmetic, "tokenizer": {"source": "base"}},
        "a model": {**linear, "tokenizer": {"source": "one"}},
        "legacy model": {**arithmetic, "tokenizer_source": "two"},
        "padded": {**linear, "tokenizer": {"source": "union", "pad_to_multiple_of": 64}},
        "padded model": {**linear, "tokenizer": {"source": "one", "pad_to_multiple_of": 32}},
        "a source": {**linear, "tokenizer": {"tokens": {"<|im_start|>": {"source": "two"}}}},
        "forced": {**arithmetic, "tokenizer": {"tokens": {"<|im_end|>": {"source": "one", "force": True}}}},
        "zeros": {**linear, "tokenizer": {"tokens": {"<one>": {"source": {"kind": "zero"}}}}},
        "zeros for all": {
            **linear,
            "tokenizer": {"tokens": {"the": {"source": {"kind": "zero"}, "force": True}}},
        },
        "new tokens": {
            **linear,
            "tokenizer": {
                "tokens": {
                    "<n>": {"source": row},
                    "<m>": {"source": named},
                    "<z>": {"source": {"kind": "zero"}},
                }
            },
        },
    }


def with_paths(value: Any, paths: Mapping[str, Path]) -> Any:
    """Return a recipe for mergekit, which knows models by their folders. ``base`` is a word of its own."""
    if isinstance(value, list):
        return [with_paths(item, paths) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(paths[item])
        if key in ("model", "base_model", "source", "tokenizer_source")
        and isinstance(item, str)
        and item in paths
        and not (item == "base" and key in ("source", "tokenizer_source"))
        else with_paths(item, paths)
        for key, item in value.items()
    }


@pytest.fixture(scope="module")
def environment() -> None:
    reason = mergekit.make_environment()
    if reason:
        pytest.skip(f"no mergekit environment: {reason}")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_same_row_for_every_token(kind: str, tmp_path: Path, environment: None) -> None:
    paths = make(tmp_path, **ARCHITECTURES[kind])
    models = {name: open_model(path) for name, path in paths.items()}
    wanted = recipes()
    jobs = [
        {"config": {**with_paths(recipe, paths), "dtype": "float32"}, "out": str(tmp_path / f"out {name}")}
        for name, recipe in wanted.items()
    ]
    mergekit.run(jobs, tmp_path)
    for name, recipe in wanted.items():
        names = [entry["model"] for entry in recipe["models"]]
        config = block(
            recipe["merge_method"],
            {entry["model"]: entry.get("parameters", {}) for entry in recipe["models"]},
            **{key: value for key, value in recipe.items() if key not in ("merge_method", "models")},
        )
        inputs = {model: models[model] for model in MergeStage.inputs(config)}
        assert config.problems() == [], name
        assert MergeStage.check(config, inputs) == [], name
        ours, theirs = MergeStage.run(config, inputs, seed=0), mergekit.read(tmp_path / f"out {name}")
        mine = transformers_tokenizer(ours.files, tmp_path / f"tokenizer {name}").get_vocab()
        their_ids = AutoTokenizer.from_pretrained(tmp_path / f"out {name}").get_vocab()
        assert mine.keys() == their_ids.keys(), name
        saved = json.loads((tmp_path / f"out {name}" / "config.json").read_text())
        assert ours.config["vocab_size"] == saved["vocab_size"], name
        tables = vocabulary_tables(models[names[0]])
        for table, spec in ours.specs.items():
            found = ours.tensor(table)
            other = theirs[table] if table in theirs else theirs[f"transformer.{table}"]
            assert tuple(other.shape) == spec.shape, (name, table)
            if table in tables:
                rows = [their_ids[token] for token in mine]
                assert (found[list(mine.values())] - other[rows]).abs().max().item() < 2e-6, (name, table)
                padding = range(len(mine), spec.shape[0])
                assert (found[padding] - other[padding]).abs().amax().item() < 2e-6 if padding else True
            else:
                assert (found - other).abs().max().item() < 2e-6, (name, table)


def test_where_mergekit_leaves_special_ids_and_words_behind(tmp_path: Path, environment: None) -> None:
    """See docs/merge-methods.md: ids of a config by token, and ordinary tokens that texts are cut into."""
    paths = make(tmp_path, arch="llama")
    order = [*SPECIAL[::-1], *bytes_alphabet(), *("".join(pair) for pair in MORE)]
    byte_level(
        paths["two"],
        {token: number for number, token in enumerate(order)},
        MORE,
        added=MODELS["two"][1],
        tokenizer_class="GPT2Tokenizer",
    )
    recipe = {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": name, "parameters": {"weight": 1.0}} for name in ("base", "two")],
    }
    jobs = [
        {
            "config": with_paths({**recipe, "tokenizer_source": source}, paths),
            "out": str(tmp_path / f"out {source}"),
        }
        for source in ("two", "union")
    ]
    mergekit.run(jobs, tmp_path)
    models = {name: open_model(paths[name]) for name in ("base", "two")}
    entries = {name: {"weight": 1.0} for name in models}
    theirs = json.loads((tmp_path / "out two" / "config.json").read_text())
    ours = MergeStage.run(block("linear", entries, base_model="base", tokenizer_source="two"), models, seed=0)
    ids = AutoTokenizer.from_pretrained(paths["two"]).get_vocab()
    assert ours.config["eos_token_id"] == ids["</s>"] == 0
    assert theirs["eos_token_id"] == 2 == ids["<unk>"]
    made = MergeStage.run(
        block("linear", entries, base_model="base", tokenizer_source="union"), models, seed=0
    )
    mine = transformers_tokenizer(made.files, tmp_path / "ours")
    assert mine.tokenize("a hand") == AutoTokenizer.from_pretrained(paths["two"]).tokenize("a hand")
    assert "and" in mine.tokenize("a hand")
    # There "and" is an added token, which also cuts the word before it.
    mergekit_s = AutoTokenizer.from_pretrained(tmp_path / "out union")
    assert mergekit_s.get_added_vocab().keys() >= {"and", "an"}
    assert len(mergekit_s.tokenize("then an inn")) > len(mine.tokenize("then an inn")) - 1
