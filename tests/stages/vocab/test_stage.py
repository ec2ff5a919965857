"""The stage on tiny models: headers, rows, files, and what stays as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.registry import INITIALISERS
from evolve.stages.pipeline import check
from evolve.stages.vocab import VocabStage
from evolve.stages.vocab.block import VocabBlock
from evolve.stages.vocab.extension import extension_of, settings
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from evolve.weights.writer import write_model
from tests.stages.vocab.kit import block, save
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model

TEXTS = ["the zebra and the quagga met a zebra near the quagga river"] * 12
KEYS = {"selection": {"min_frequency": 4}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save(tmp_path / "domain.jsonl", TEXTS)


def parent(folder: Path, **keys: Any) -> Model:
    return open_model(make_model(folder / "base", **keys))


def run(model: Model, data: Path, count: int = 10, **keys: Any) -> Model:
    return VocabStage.run(block(data, count, **{**KEYS, **keys}), {"base": model}, seed=1)


def pieces(model: Model, data: Path, count: int) -> tuple[list[list[int]], int]:
    found = extension_of(model, settings(block(data, count, **KEYS)))
    return [rows.tolist() for rows, _ in found.pieces], found.first


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_input_and_output_by_their_rules(tmp_path: Path, data: Path, tied: bool) -> None:
    model = parent(tmp_path, tied=tied)
    made = run(model, data)
    own, first = pieces(model, data, 10)
    names = ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]
    assert made.config == {**model.config, "vocab_size": 144}
    for name in names:
        old, new = model.tensor(name), made.tensor(name)
        assert tuple(new.shape) == made.specs[name].shape == (144, 64)
        assert torch.equal(new[:128], old)
        tokens = {number: token for token, number in load_tokenizer(model.files, model.config).ids.items()}
        for place, rows in enumerate(own):
            weights = np.ones(len(rows))
            if name.startswith("lm_head"):
                weights = np.array([len(tokens[row]) for row in rows], float)
            expected = (old[rows].double().numpy() * weights[:, None]).sum(0) / weights.sum()
            np.testing.assert_allclose(new[first + place].numpy(), expected, rtol=1e-6, atol=1e-7)
        mean = old.double().mean(0)
        assert torch.allclose(new[138:].double(), mean.expand(6, -1), atol=1e-6)
    for name in model.specs:
        if name not in names:
            assert made.tensor(name).data_ptr() == model.tensor(name).data_ptr() or torch.equal(
                made.tensor(name), model.tensor(name)
            )
            assert made.specs[name] == model.specs[name]


def test_padding_rows_are_filled_first_and_size_stays(tmp_path: Path, data: Path) -> None:
    """A tokenizer of 128 tokens, an embedding of 150 rows."""
    import json

    folder = make_model(tmp_path / "base", vocab=150, tied=True)
    wide = open_model(folder)
    make_model(tmp_path / "narrow", vocab=128)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "narrow" / name).read_bytes())
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 150
    made = run(wide, data, 10)
    name = "model.embed_tokens.weight"
    assert made.specs[name].shape == (150, 64) and made.config["vocab_size"] == 150
    assert made.architecture == wide.architecture
    assert torch.equal(made.tensor(name)[138:], wide.tensor(name)[138:])
    assert not torch.equal(made.tensor(name)[128:138], wide.tensor(name)[128:138])


def test_a_padding_row_is_never_the_most_probable(tmp_path: Path, data: Path) -> None:
    model = parent(tmp_path, tied=False)
    made = run(model, data, init={"output": "mean_all"})
    head = made.tensor("lm_head.weight").double()
    states = torch.randn(500, 64, dtype=torch.float64)
    logits = states @ head.T
    assert int(logits.argmax(1).max()) < 128
    share = logits.softmax(1)[:, 128:].sum(1)
    assert float(share.max()) <= 16 / 144 + 1e-9


def test_norm_sets_the_length_of_input_rows_alone(tmp_path: Path, data: Path) -> None:
    model = parent(tmp_path, tied=False)
    plain, scaled = run(model, data), run(model, data, init={"norm": 0.7})
    old = model.tensor("model.embed_tokens.weight").double().norm(dim=1).mean()
    rows = scaled.tensor("model.embed_tokens.weight")[128:138].double()
    assert torch.allclose(rows.norm(dim=1), 0.7 * old, rtol=1e-6)
    cosine = torch.cosine_similarity(rows, plain.tensor("model.embed_tokens.weight")[128:138].double())
    assert torch.allclose(cosine, torch.ones(10, dtype=torch.float64))
    assert torch.equal(scaled.tensor("lm_head.weight"), plain.tensor("lm_head.weight"))
    head = run(model, data, init={"output_norm": 2}).tensor("lm_head.weight")[128:138].double()
    assert torch.allclose(head.norm(dim=1), 2 * model.tensor("lm_head.weight").double().norm(dim=1).mean())


@pytest.mark.parametrize("name", INITIALISERS.names())
def test_every_initialiser(name: str, tmp_path: Path, data: Path) -> None:
    """Rows of the fewer are those of the more; the seed has a say where it should, and only there."""
    model = parent(tmp_path, tied=False, dtype="bfloat16")
    init = {"input": name, "output": name}
    many, few = run(model, data, 14, init=init), run(model, data, 6, init=init)
    again = VocabStage.run(block(data, 14, **KEYS, init=init), {"base": model}, seed=2)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = many.tensor(table)[128:142]
        assert rows.dtype == torch.bfloat16 and bool(torch.isfinite(rows).all()) and bool(rows.any())
        assert torch.equal(rows[:6], few.tensor(table)[128:134])
        assert torch.equal(rows, again.tensor(table)[128:142]) is not INITIALISERS.load(name).random
    assert not torch.equal(
        many.tensor("lm_head.weight")[128:], many.tensor("model.embed_tokens.weight")[128:]
    )


def test_random_rows_have_the_spread_of_the_table(tmp_path: Path) -> None:
    from evolve.stages.vocab.initialisers.base import NewTokens
    from evolve.stages.vocab.initialisers.random import Random

    table = torch.randn(400, 6, dtype=torch.float64) * torch.arange(1, 7) + 3
    keys = [int(key) for key in np.random.default_rng(0).integers(0, 2**63, 4000)]
    new = NewTokens(["x"] * 4000, [], np.arange(400), lambda: [], keys)
    rows = Random.rows(table, new)
    assert torch.allclose(rows.mean(0), table.mean(0), atol=0.35)
    assert torch.allclose(rows.std(0), table.std(0), rtol=0.06)


def test_what_is_written_is_a_plain_model(tmp_path: Path, data: Path) -> None:
    """It loads in transformers, and a text without new tokens keeps its ids and logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = parent(tmp_path, tied=True)
    write_model(run(model, data), tmp_path / "out")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    old = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert network.config.vocab_size == network.get_input_embeddings().weight.shape[0] == 144
    assert len(tokenizer) == 138
    text = "one hen, two"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.tolist() == old(text, return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        assert torch.allclose(network(ids).logits[..., :128], before(ids).logits, atol=1e-5)
    assert len(tokenizer(TEXTS[0]).input_ids) < len(old(TEXTS[0]).input_ids)
    assert tokenizer.decode(tokenizer(TEXTS[0]).input_ids) == TEXTS[0]


def test_the_outline_is_that_of_the_largest_vocabulary(tmp_path: Path, data: Path) -> None:
    model = parent(tmp_path)

    def outline(count: Any) -> Model:
        return VocabStage.outline(block(data, count, **KEYS), {"base": model})

    wide = outline({"choices": [4, 17, 8]})
    made = run(model, data, 17)
    assert (wide.config, dict(wide.specs), wide.files) == (made.config, dict(made.specs), made.files)
    assert wide.architecture == made.architecture != outline({"low": 2, "high": 16}).architecture
    with pytest.raises(TypeError):
        wide.tensor("lm_head.weight")


def test_what_is_wrong_is_told_before_anything_is_built(tmp_path: Path, data: Path) -> None:
    model = parent(tmp_path)

    def problems(vocab: Any) -> list[tuple[str, str]]:
        return VocabStage.check(vocab, {"base": model})

    assert problems(block(data, 10, **KEYS)) == []
    ((path, message),) = problems(block(data, {"choices": [10, 4000]}, **KEYS))
    assert path == "num_new_tokens" and "lower it or selection.min_frequency" in message
    assert problems(block(tmp_path / "none.jsonl", 10)) == [
        ("dataset", f"{tmp_path / 'none.jsonl'}: no such file")
    ]
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    assert problems(block(data, 10, **KEYS, terms=str(tmp_path / "bad.txt")))[0][0] == "terms"
    assert VocabStage.check(block(data, 10, selection={"min_frequency": 10**6}), {"base": model}) != []


def test_a_changed_dataset_is_no_other_result(tmp_path: Path, data: Path) -> None:
    model = parent(tmp_path)
    save(data, ["not chosen from before zebra zebra zebra zebra"])
    from evolve.weights.content import file_content

    whole = {"path": str(data), "content": file_content(data)}
    keys = {"model": "base", "num_new_tokens": 1, "dataset": whole, **KEYS}
    vocab = VocabBlock.model_validate(keys)
    data.write_text(data.read_text() + '{"text": "more"}\n')
    with pytest.raises(CandidateError, match="bring back the one that was meant"):
        VocabStage.run(vocab, {"base": model}, seed=0)


def test_a_merge_of_an_extended_with_another_model(tmp_path: Path, data: Path) -> None:
    """Without a tokenizer key it is an error that says what to do; with a union it is built."""
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.stage import MergeStage

    models = {"base": parent(tmp_path), "other": open_model(make_model(tmp_path / "other", seed=5))}
    stage = block(data, 10, **KEYS, name="wide")

    def merge(**keys: Any) -> MergeBlock:
        listed = [{"model": name, "parameters": {"weight": 0.5}} for name in ("wide", "other")]
        return MergeBlock.model_validate({"merge_method": "linear", "models": listed, **keys})

    ((path, message),) = check([("vocab", stage), ("merge", merge())], models)
    assert path == "pipeline.1.merge.models" and "set tokenizer: {source: union}" in message
    union = merge(tokenizer={"source": "union", "pad_to_multiple_of": 16})
    assert check([("vocab", stage), ("merge", union)], models) == []
    switched = block(data, 10, **KEYS, name="wide", enabled={"choices": [False, True]})
    assert check([("vocab", switched), ("merge", union)], models) == []
    wide = VocabStage.run(stage, models, seed=0)
    made = MergeStage.run(union, {"wide": wide, "other": models["other"]}, seed=0)
    table = made.tensor("model.embed_tokens.weight")
    assert table.shape == (144, 64)
    name = "model.embed_tokens.weight"
    average = (wide.tensor(name)[:128] + models["other"].tensor(name)) / 2
    assert torch.allclose(table[:128], average, atol=1e-6)
    assert torch.allclose(table[128:138], wide.tensor(name)[128:138], atol=1e-6)


@pytest.mark.parametrize("norm", [None, 0.7])
def test_the_mean_of_pieces_commutes_with_a_linear_merge_and_a_set_length_does_not(
    tmp_path: Path, data: Path, norm: float | None
) -> None:
    """Base and parents extended alike and merged are the merge extended; lengths of rows are not linear."""
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.stage import MergeStage

    models = {name: open_model(make_model(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")}
    listed = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("a", 0.3), ("b", 0.7))]
    linear = MergeBlock.model_validate({"merge_method": "linear", "models": listed, "dtype": "float32"})
    init = {"init": {"norm": norm}} if norm else {}

    def extended(model: Model) -> Model:
        return VocabStage.run(block(data, 10, **KEYS, **init), {"base": model}, seed=1)

    behind = extended(MergeStage.run(linear, models, seed=0))
    before = MergeStage.run(linear, {name: extended(model) for name, model in models.items()}, seed=0)
    tables = [made.tensor("model.embed_tokens.weight") for made in (behind, before)]
    assert tables[0].shape == tables[1].shape == (144, 64)
    assert torch.allclose(tables[0][:128], tables[1][:128], atol=1e-6)
    assert torch.allclose(tables[0][138:], tables[1][138:], atol=1e-6), "the mean of all rows is linear too"
    assert torch.allclose(tables[0][128:138], tables[1][128:138], atol=1e-6) is (norm is None)
