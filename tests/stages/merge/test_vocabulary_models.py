"""Whole tiny models whose vocabularies differ, merged, written, and used in transformers."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.stages.pipeline import build, check
from evolve.statistics.corpus import Corpus
from evolve.statistics.gather import statistics_of
from evolve.types import Recipe
from evolve.weights.content import file_content
from evolve.weights.reader import open_model
from evolve.weights.tables import vocabulary_tables
from evolve.weights.vocabulary import vocabulary
from evolve.weights.writer import write_model
from tests.stages.merge.memory import block
from tests.stages.merge.reference_beyond import regmean
from tests.stages.merge.vocabularies import aligned_rows, tokens_of
from tests.tiny import make_model
from tests.tokenizers import SPECIAL, byte_level, bytes_alphabet, llama_style

if TYPE_CHECKING:
    from pathlib import Path

ADDED = ("<|im_start|>", "<|im_end|>")
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
UNION: dict[str, Any] = {"tokenizer": {"source": "union"}}
TEXTS = ("the hen in the tin", " naïve 🙂\n\nthe end<|im_end|>", "<|im_start|>user\nthe in")


def entries(weights: dict[str, float]) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]


def make(
    folder: Path, arch: str, *, tied: bool, added: tuple[str, ...] = ADDED, spare: int = 0, seed: int = 0
) -> Path:
    """Write a model with a byte-level tokenizer, and ``spare`` rows beyond its ids."""
    tokens = [*SPECIAL, *bytes_alphabet(), *("".join(pair) for pair in MERGES)]
    make_model(folder, arch, tied=tied, seed=seed, layers=1, vocab=len(tokens) + len(added) + spare)
    vocab = {token: number for number, token in enumerate(tokens)}
    byte_level(folder, vocab, MERGES, added=added, tokenizer_class="GPT2Tokenizer")
    return folder


def permuted(source: Path, target: Path, *, seed: int) -> Path:
    """Write a copy of a model that is the same function of texts: its ids are permuted, rows and all."""
    target.mkdir()
    data = json.loads((source / "tokenizer.json").read_text())
    old = AutoTokenizer.from_pretrained(source).get_vocab()
    order = list(old)
    random.Random(seed).shuffle(order)
    new = {token: number for number, token in enumerate(order)}
    byte_level(
        target,
        new,
        [tuple(pair) for pair in data["model"]["merges"]],
        added=[entry["content"] for entry in data["added_tokens"]],
        tokenizer_class="GPT2Tokenizer",
    )
    config = json.loads((source / "config.json").read_text())
    names = {number: token for token, number in old.items()}
    config |= {key: new[names[config[key]]] for key in config if key.endswith("_token_id")}
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for name in vocabulary_tables(open_model(source)):
        rows = torch.zeros_like(tensors[name])
        for token, number in new.items():
            rows[number] = tensors[name][old[token]]
        tensors[name] = rows
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def logits(folder: Path, text: str) -> dict[str, np.ndarray]:
    """Return the logits after a text by token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        found = model(torch.tensor([tokenizer.encode(text)])).logits[0].numpy()
    return {token: found[:, number] for token, number in tokenizer.get_vocab().items()}


@pytest.mark.parametrize(
    ("arch", "tied"),
    [
        ("llama", True),
        ("llama", False),
        ("gpt2", True),
        ("gpt2", False),
        ("gpt_neox", False),
        ("qwen2", True),
    ],
)
def test_a_model_and_itself_in_another_order_of_ids(arch: str, tied: bool, tmp_path: Path) -> None:
    """The same function before and after: logits by text. A linear merge of a model with itself is itself."""
    first = make(tmp_path / "first", arch, tied=tied)
    second = permuted(first, tmp_path / "second", seed=1)
    for text in TEXTS:
        mine, theirs = logits(first, text), logits(second, text)
        assert all(np.allclose(mine[token], theirs[token], atol=1e-12) for token in mine)
    models = {"first": open_model(first), "second": open_model(second)}
    entries = {name: {"weight": 1.0} for name in models}
    for source in ("union", "second"):
        config = block("linear", entries, tokenizer={"source": source})
        assert MergeStage.check(config, models) == []
        out = tmp_path / f"out-{source}"
        write_model(MergeStage.run(config, models, seed=0), out)
        for text in TEXTS:
            before, after = logits(first, text), logits(out, text)
            assert before.keys() == after.keys()
            assert all(np.allclose(before[token], after[token], atol=2e-6) for token in before)
    saved = json.loads((tmp_path / "out-second" / "config.json").read_text())
    wanted = json.loads((second / "config.json").read_text())
    assert {key: saved[key] for key in wanted if key.endswith("_token_id")} == {
        key: value for key, value in wanted.items() if key.endswith("_token_id")
    }


@pytest.mark.parametrize(("arch", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_a_union_in_transformers(arch: str, tied: bool, tmp_path: Path) -> None:
    base = make(tmp_path / "base", arch, tied=tied, added=(), spare=9)
    chat = make(tmp_path / "chat", arch, tied=tied, seed=1)
    models = {"base": open_model(base), "chat": open_model(chat)}
    config = block(
        "task_arithmetic",
        {"chat": {"weight": 0.7}},
        base_model="base",
        tokenizer={"source": "union", "pad_to_multiple_of": 16},
        chat_template="chatml",
    )
    assert MergeStage.check(config, models) == []
    out = tmp_path / "out"
    write_model(MergeStage.run(config, models, seed=0), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    size = model.config.vocab_size
    assert size % 16 == 0
    assert model.get_input_embeddings().weight.shape[0] == size
    assert model.get_output_embeddings().weight.shape[0] == size
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "the hen"}], add_generation_prompt=True)
    ids = ids["input_ids"] if hasattr(ids, "keys") else ids
    assert tokenizer.get_vocab()["<|im_start|>"] in ids
    made = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert made.shape[1] == len(ids) + 12
    assert made.max().item() < len(tokenizer)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert max(tokenizer.encode(text)) < size


def test_llama_tokenizers(tmp_path: Path) -> None:
    """With ▁ and byte fallback, of which transformers builds the tokenizer anew from its vocabulary."""
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("i", "n")]
    more = [*merges, ("h", "e"), ("he", "n"), ("▁", "hen")]
    models, folders = {}, {}
    for seed, (name, pairs, added) in enumerate([("base", merges, ()), ("more", more, ADDED)]):
        folder = folders[name] = tmp_path / name
        rows = 286 + 3 + len(pairs) + len(added)
        make_model(folder, "llama", layers=1, seed=seed, vocab=rows)
        llama_style(folder, pairs, added=added)
        models[name] = open_model(folder)
    config = block("linear", {name: {"weight": 0.5} for name in models}, tokenizer={"source": "union"})
    assert MergeStage.check(config, models) == []
    out = tmp_path / "out"
    write_model(MergeStage.run(config, models, seed=0), out)
    mine, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(folders["more"])
    for text in ("the hen in the tin", "a then.<|im_end|> hen", "Ünicode 🙂"):
        assert mine.tokenize(text) == theirs.tokenize(text)
        assert mine.decode(mine.encode(text)) == theirs.decode(theirs.encode(text))
    model = AutoModelForCausalLM.from_pretrained(out)
    table, ids = model.get_input_embeddings().weight.double(), mine.get_vocab()
    assert len(ids) == model.config.vocab_size == len(table)
    tables = {name: model.tensor("model.embed_tokens.weight").double() for name, model in models.items()}
    first = AutoTokenizer.from_pretrained(folders["base"]).get_vocab()
    for token, place in ids.items():
        row = tables["more"][theirs.get_vocab()[token]]
        wanted = (row + tables["base"][first[token]]) / 2 if token in first else row
        assert torch.allclose(table[place], wanted, atol=1e-6), token


def test_a_merge_of_a_merge_with_another_vocabulary(tmp_path: Path) -> None:
    """The check of a later stage knows the vocabulary that an earlier one will have, and the build has it."""
    models = {
        "base": open_model(make(tmp_path / "base", "llama", tied=True, added=())),
        "chat": open_model(make(tmp_path / "chat", "llama", tied=True, seed=1)),
        "other": open_model(make(tmp_path / "other", "llama", tied=True, added=("<other>",), seed=2)),
    }

    def stages(**keys: Any) -> list[dict[str, Any]]:
        first = dict.fromkeys(("base", "chat"), 1.0)
        return [
            {"merge": {"name": "joint", "merge_method": "linear", "models": entries(first), **UNION}},
            {
                "merge": {
                    "merge_method": "linear",
                    "models": entries({"joint": 1.0, **keys.pop("beside")}),
                    **keys,
                }
            },
        ]

    def found(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
        return check([("merge", MergeBlock.model_validate(step["merge"])) for step in steps], models)

    assert found(stages(beside={"chat": 1.0})) == []
    ((path, message),) = found(stages(beside={"base": 1.0}))
    assert path == "pipeline.1.merge.models"
    assert "'<|im_start|>' is absent and not" in message
    steps = stages(beside={"other": 1.0}, **UNION, chat_template="alpaca")
    assert found(steps) == []
    out = tmp_path / "out"
    write_model(build(Recipe.make(dict.fromkeys(models, "sha256:0"), steps), models), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = AutoTokenizer.from_pretrained(tmp_path / "chat").get_vocab()
    assert tokenizer.get_vocab() == {**chat, "<other>": len(chat)}
    assert "### Response" in tokenizer.chat_template
    table = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    name = "model.embed_tokens.weight"
    tables = {key: model.tensor(name) for key, model in models.items()}
    place = chat["<|im_end|>"]
    # Only chat has it, so it is that row in the first merge, and what the second fills other with.
    assert torch.allclose(table[place], tables["chat"][place], atol=1e-6)
    joint = (tables["base"][5] + tables["chat"][5]) / 2
    assert torch.allclose(table[5], (joint + tables["other"][5]) / 2, atol=1e-6)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_statistics_of_models_with_different_vocabularies(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gathered of each model in its own tokens, and then belong to the rows of the result."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the hen {i} in the tin<|im_end|>the end {i * i}" for i in range(30)))
    content = file_content(text)
    models = {
        name: replace(
            open_model(make(tmp_path / name, "llama", tied=False, added=added, seed=seed)), content=name
        )
        for seed, (name, added) in enumerate([("base", ("<base>",)), ("chat", ADDED)])
    }
    settings = {"path": str(text), "max_tokens": 500, "sequence_length": 40, "content": content}
    config = block(
        method,
        {"base": {"weight": 2.0}, "chat": {}},
        **UNION,
        statistics=settings,
        **({"parameters": {"floor": 0.0, "normalize": False}} if method == "fisher" else {}),
    )
    result = MergeStage.run(config, models, seed=0)
    corpus = Corpus(str(text), content, 500, 40, 0)
    gathered = {
        name: statistics_of(model, "fisher" if method == "fisher" else "gram", corpus)
        for name, model in models.items()
    }
    ids = vocabulary(result.files)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = aligned_rows(models, table, ids, len(ids))
        expected = (2 * rows["base"] + rows["chat"]) / 3
        if method == "fisher":
            mass = {name: np.zeros_like(found) for name, found in rows.items()}
            for name, weight in (("base", 2.0), ("chat", 1.0)):
                values, _ = gathered[name].get(table)
                for token, number in tokens_of(models[name]).items():
                    mass[name][ids[token]] = weight * values[number].double().numpy()
            total = mass["base"] + mass["chat"]
            known = total > 0
            shares = sum(mass[name] * rows[name] for name in rows)
            expected[known] = shares[known] / total[known]
            assert known[ids["<|im_end|>"]].any()
        elif table == "lm_head.weight":
            grams = [gathered[name].get(table)[0].double().numpy() for name in models]
            expected = regmean([rows[name].T for name in models], grams, [2.0, 1.0], 0.9).T
        assert np.allclose(result.tensor(table).double().numpy(), expected, atol=2e-5), table
