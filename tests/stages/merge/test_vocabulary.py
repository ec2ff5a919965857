"""One vocabulary for models with several. The oracle works by the text of tokens, and in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from evolve.errors import CandidateError
from evolve.stages.merge import MergeStage
from evolve.stages.merge.vocabulary import VocabularyError, aligned
from evolve.weights.files import SideFiles
from evolve.weights.vocabulary import vocabulary as read_vocabulary
from tests.stages.merge.memory import block
from tests.stages.merge.vocabularies import (
    BIAS,
    EMBEDDING,
    HEAD,
    MERGES,
    MORE,
    WEIGHTS,
    aligned_rows,
    linear,
    read_config,
    sizes,
    table_model,
    table_models,
    three_tokenizers,
    transformers_tokenizer,
)
from tests.tokenizers import gpt2_style

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizers that share most tokens, in different orders."""
    return three_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def check_rows(
    config: Any, models: dict[str, Model], tmp_path: Path, **rule: Any
) -> tuple[Model, dict[str, int]]:
    """Merge, and compare every row of every table with the oracle; return the result and its ids."""
    assert config.problems() == []
    assert MergeStage.check(config, models) == []
    result = MergeStage.run(config, models, seed=0)
    ids = transformers_tokenizer(result.files, tmp_path / "tokenizer").get_vocab()
    size = result.config["vocab_size"]
    for table, spec in result.specs.items():
        assert spec.shape[0] == size > max(ids.values())
        rows = aligned_rows(models, table, ids, size, **rule)
        wanted = sum(WEIGHTS[name] * found for name, found in rows.items())
        assert np.allclose(result.tensor(table).double().numpy(), wanted, rtol=0, atol=5e-7), table
    return result, ids


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("base", [None, "base", "two"])
def test_the_union(folders: Any, tied: bool, bias: bool, base: str | None, tmp_path: Path) -> None:
    models = table_models(folders, tied=tied, bias=bias)
    config = linear(tokenizer={"source": "union"}, **({"base_model": base} if base else {}))
    result, ids = check_rows(config, models, tmp_path, base=base)
    assert set(result.specs) == {EMBEDDING, *(() if tied else (HEAD,)), *((BIAS,) if bias else ())}
    known = [read_vocabulary(folder) for folder in folders.values()]
    assert ids.keys() == {token for tokens in known for token in tokens}
    donor = read_vocabulary(folders[base or "base"])
    assert donor.items() <= ids.items()
    assert result.config["vocab_size"] == len(ids)
    assert sorted(ids.values()) == list(range(len(ids)))


@pytest.mark.parametrize("key", ["tokenizer", "tokenizer_source"])
@pytest.mark.parametrize("source", ["base", "one", "two"])
def test_the_vocabulary_of_one(folders: Any, key: str, source: str, tmp_path: Path) -> None:
    models = table_models(folders)
    value: Any = {"source": source} if key == "tokenizer" else source
    result, ids = check_rows(linear(base_model="base", **{key: value}), models, tmp_path, base="base")
    assert ids == read_vocabulary(folders[source])
    assert result.files == folders[source]
    assert result.config["vocab_size"] == sizes(folders[source])


CHOICES = {
    "a model": {"<|im_start|>": {"source": "two"}},
    "a model for all": {"<|im_start|>": {"source": "two", "force": True}},
    "zeros": {"<|im_end|>": {"source": {"kind": "zero"}}},
    "zeros for all": {"the": {"source": {"kind": "zero"}, "force": True}},
    "another token": {"<|im_start|>": {"source": {"kind": "model_token", "model": "base", "token": "<s>"}}},
    "a row": {"<one>": {"source": {"kind": "model_token", "model": "two", "token_id": 3}, "force": True}},
    "a padding row": {"<one>": {"source": {"kind": "model_token", "model": "base", "token_id": 270}}},
    "new tokens": {
        "<new>": {"source": {"kind": "zero"}},
        "<newer>": {"source": {"kind": "model_token", "model": "one", "token": "and"}},
    },
}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("source", ["union", "base", "two"])
def test_chosen_embeddings(folders: Any, choices: Any, source: str, tmp_path: Path) -> None:
    models = table_models(folders, tied=False)
    config = linear(base_model="base", tokenizer={"source": source, "tokens": choices})
    _, ids = check_rows(config, models, tmp_path, base="base", choices=choices)
    donor = read_vocabulary(folders["base" if source == "union" else source])
    assert donor.items() <= ids.items()
    assert choices.keys() <= ids.keys()
    if source != "union":
        assert ids.keys() == donor.keys() | choices.keys()


@pytest.mark.parametrize("multiple", [1, 2, 64, 100])
def test_rows_are_rounded_up(folders: Any, multiple: int, tmp_path: Path) -> None:
    models = table_models(folders, tied=False)
    result, ids = check_rows(linear(tokenizer={"pad_to_multiple_of": multiple}), models, tmp_path)
    size = result.config["vocab_size"]
    assert size % multiple == 0
    assert 0 <= size - len(ids) < multiple
    # Padding can never be the likeliest token: its row of the head is the mean of the others.
    head, states = result.tensor(HEAD).double(), torch.randn(200, 4, dtype=torch.float64)
    share = torch.softmax(states @ head.T, dim=1)[:, len(ids) :].sum(dim=1)
    assert share.max().item() <= (size - len(ids)) / size + 1e-6


def test_ids_with_holes_and_tokens_beyond_the_embedding(tmp_path: Path) -> None:
    root = tmp_path / "tokenizers"
    folders = {
        "base": gpt2_style(root / "base", MERGES, gaps={"the": 290, "</s>": 281}),
        "one": gpt2_style(root / "one", MORE, gaps={"a": 333}, added=["<beyond>", "<one>"], shuffle=3),
        "two": gpt2_style(root / "two", MERGES, added=["<one>", "<two>"]),
    }
    numbers = {name: AutoTokenizer.from_pretrained(folder).get_vocab() for name, folder in folders.items()}
    rows = {"base": 291, "one": numbers["one"]["<beyond>"], "two": sizes(folders["two"])}
    models = {
        name: table_model(folder, rows[name], seed=seed)
        for seed, (name, folder) in enumerate(folders.items())
    }
    result, ids = check_rows(linear(tokenizer_source="union"), models, tmp_path)
    # Nobody has an embedding for it, and the tokenizer that is extended does not have it.
    assert "<beyond>" not in ids
    assert result.config["vocab_size"] == 1 + max(ids.values()) > len(ids)
    # Where its own tokenizer gives the result's, it stays, and gets the mean row.
    _, ids = check_rows(linear(tokenizer_source="one"), models, tmp_path / "again")
    assert ids == numbers["one"]
    assert ids["a"] == 333 >= rows["one"]


def test_special_ids_follow_their_tokens(tmp_path: Path) -> None:
    base = gpt2_style(tmp_path / "base", added=["<|im_end|>"])
    one = gpt2_style(tmp_path / "one", added=["<|im_start|>", "<eot>"], shuffle=4)
    first, second = (read_vocabulary(folder) for folder in (base, one))
    models = {
        "base": table_model(
            base,
            sizes(base),
            seed=0,
            bos_token_id=first["<s>"],
            eos_token_id=[first["</s>"], first["<|im_end|>"]],
            pad_token_id=first["<|im_end|>"],
            sep_token_id=9999,
            unk_token_id=-1,
        ),
        "one": table_model(
            one,
            sizes(one) + 3,
            seed=1,
            bos_token_id=second["<s>"],
            eos_token_id=second["<eot>"],
            pad_token_id=second["<eot>"],
        ),
    }
    generation = {"eos_token_id": [second["<eot>"], sizes(one) + 2], "pad_token_id": 9999, "max_length": 7}
    (one / "generation_config.json").write_text(json.dumps(generation))

    def special(source: str) -> tuple[dict[str, Any], Model]:
        config = block(
            "linear",
            {"base": {"weight": 1}, "one": {"weight": 1}},
            base_model="base",
            tokenizer_source=source,
        )
        result = MergeStage.run(config, models, seed=0)
        return {key: value for key, value in result.config.items() if key.endswith("_token_id")}, result

    found, _ = special("union")
    kept = {key: models["base"].config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert found == {**kept, "sep_token_id": None, "unk_token_id": None}
    found, result = special("one")
    assert found == {
        "bos_token_id": second["<s>"],
        "eos_token_id": [second["</s>"]],
        # The result has no <|im_end|>, so the pad is that of the model that gives the tokenizer.
        "pad_token_id": second["<eot>"],
        "sep_token_id": None,
        "unk_token_id": None,
    }
    assert isinstance(result.files, SideFiles)
    assert read_config(result.files, "generation_config.json") == {
        "eos_token_id": [second["<eot>"]],
        "pad_token_id": None,
        "max_length": 7,
    }


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_types(folders: Any, kind: str) -> None:
    """Fills are not rounded to the model's type on the way, and do not change the type of the result."""
    models = table_models(folders, dtype=kind)
    mean = linear(tokenizer_source="union", parameters={"normalize": True})
    result = MergeStage.run(mean, models, seed=0)
    assert result.specs[EMBEDDING].dtype == kind
    ids = read_vocabulary(result.files)
    rows = aligned_rows(models, EMBEDDING, ids, len(ids))
    wanted = torch.from_numpy(sum(WEIGHTS[name] * found for name, found in rows.items()))
    # One rounding at the end: no farther than half a step, but for the last bits of float32.
    half_a_step = (
        torch.exp2(torch.floor(torch.log2(wanted.abs()))) * torch.finfo(getattr(torch, kind)).eps / 2
    )
    error = (result.tensor(EMBEDDING).double() - wanted).abs()
    assert bool((error <= half_a_step * 1.0001 + 1e-7).all())
    inputs = aligned(mean, models)
    found = {name: model.specs[EMBEDDING].dtype for name, model in inputs.items()}
    # What one model lacks has a single owner, whose row it can hold as it is.
    assert found == {"base": "float32", "one": kind, "two": "float32"}
    plain = aligned(linear(tokenizer_source="base", base_model="base"), models)
    # Every row that is lacking here is copied from a model of the same type.
    assert {model.specs[EMBEDDING].dtype for model in plain.values()} == {kind}
    for model in (*inputs.values(), *plain.values()):
        assert model.tensor(EMBEDDING).dtype == getattr(torch, model.specs[EMBEDDING].dtype)


def test_a_task_vector_of_a_token_that_a_model_lacks_is_zero(folders: Any) -> None:
    """The base's float32 row, not one rounded to the bfloat16 of the model that lacks it."""
    models = table_models(folders)
    models["one"] = table_model(folders["one"], sizes(folders["one"]), seed=1, dtype="bfloat16")
    config = block(
        "task_arithmetic", {"one": {"weight": 3.0}}, base_model="base", tokenizer={"source": "base"}
    )
    result = MergeStage.run(config, models, seed=0)
    place = read_vocabulary(folders["base"])["<base>"]
    assert torch.equal(result.tensor(EMBEDDING)[place], models["base"].tensor(EMBEDDING)[place])


@pytest.mark.parametrize("source", ["union", "one"])
def test_tables_of_an_adapter_are_not_rounded_on_the_way(folders: Any, source: str, tmp_path: Path) -> None:
    """What is known of a bfloat16 model before its rounding goes into the rows, also into those of others."""
    wide = table_models(folders)
    models = table_models(folders, dtype="bfloat16")
    for name in ("one", "two"):
        models[name] = replace(models[name], exact=wide[name].tensor)
    config = linear(tokenizer_source=source, dtype="float32")
    assert MergeStage.check(config, models) == []
    result = MergeStage.run(config, models, seed=0)
    ids = read_vocabulary(result.files)
    exact = {**wide, "base": models["base"]}
    rows = aligned_rows(exact, EMBEDDING, ids, result.config["vocab_size"])
    wanted = sum(WEIGHTS[name] * found for name, found in rows.items())
    assert np.allclose(result.tensor(EMBEDDING).numpy(), wanted, rtol=0, atol=5e-7)
    inputs = aligned(config, models)
    assert [inputs[name].exact is None for name in WEIGHTS] == [True, False, False]
    for model in inputs.values():
        assert torch.equal(model.tensor(EMBEDDING), model.unrounded(EMBEDDING))
        assert model.tensor(EMBEDDING).dtype == getattr(torch, model.specs[EMBEDDING].dtype)
    other = linear(tokenizer_source=source)
    assert MergeStage.run(other, models, seed=0).specs[EMBEDDING].dtype == "bfloat16"


def test_equal_vocabularies_are_not_copied(folders: Any) -> None:
    same = {
        name: table_model(folders["base"], sizes(folders["base"]), seed=i) for i, name in enumerate(WEIGHTS)
    }
    inputs = aligned(linear(tokenizer_source="union"), same)
    for name, model in inputs.items():
        assert model.tensor(EMBEDDING) is same[name].tensor(EMBEDDING)
        assert model.specs == same[name].specs
    assert aligned(linear(), same) == same


@pytest.mark.parametrize(
    ("tokens", "path", "text"),
    [
        ({"<one>": {"source": "base"}}, "tokenizer.tokens.<one>.source", "'base' has no such token"),
        ({"<new>": {"source": "one"}}, "tokenizer.tokens.<new>.source", "'one' has no such token"),
        (
            {"<x>": {"source": {"kind": "model_token", "model": "one", "token": "<base>"}}},
            "tokenizer.tokens.<x>.source",
            "no such token ('<base>')",
        ),
        (
            {"<x>": {"source": {"kind": "model_token", "model": "one", "token_id": 5000}}},
            "tokenizer.tokens.<x>.source",
            "no row 5000",
        ),
    ],
)
def test_choices_that_cannot_be_made(folders: Any, tokens: Any, path: str, text: str) -> None:
    models = table_models(folders)
    config = linear(tokenizer={"tokens": tokens})
    (found,) = MergeStage.check(config, models)
    assert found[0] == path
    assert text in found[1]
    with pytest.raises(CandidateError, match=r"no (such token|row)") as caught:
        MergeStage.run(config, models, seed=0)
    assert caught.value.kind == "invalid_recipe"


def test_different_vocabularies_without_a_key(folders: Any) -> None:
    models = table_models(folders)
    found = dict(enumerate(message for _, message in MergeStage.check(linear(), models)))
    assert all("set tokenizer: {source: union}" in message for message in found.values())
    assert "tokens differ: '" in found[0]
    same_size = {name: table_model(folder, 300, seed=0) for name, folder in folders.items()}
    found = dict(enumerate(message for _, message in MergeStage.check(linear(), same_size)))
    assert all("set tokenizer: {source: union}" in message for message in found.values())
    assert MergeStage.check(linear(tokenizer_source="union"), models) == []


def test_what_cannot_be_told_is_refused(folders: Any, tmp_path: Path) -> None:
    models = table_models(folders)

    def refusal(**config: Any) -> str:
        changed = {**models, "one": replace(models["one"], config={**models["one"].config, **config})}
        (found,) = MergeStage.check(linear(tokenizer_source="union"), changed)
        assert found[0] == "models"
        return found[1]

    assert "transformers does not know 'mystery'" in refusal(model_type="mystery")
    assert "vocab_size_per_layer_input" in refusal(vocab_size_per_layer_input=10)
    assert "states no vocab_size" in refusal(vocab_size=None)
    assert "config.json and weights disagree" in refusal(vocab_size=77)
    (tmp_path / "empty").mkdir()
    bare = {**models, "two": replace(models["two"], files=tmp_path / "empty")}
    assert "has no tokenizer" in str(MergeStage.check(linear(tokenizer_source="union"), bare))
    gaps = gpt2_style(tmp_path / "far", gaps={"a": 10**9})
    far = {**models, "base": table_model(gaps, 300, seed=0)}
    assert "far beyond all embeddings" in str(MergeStage.check(linear(tokenizer_source="union"), far))


def test_models_that_differ_in_more_than_the_vocabulary(folders: Any) -> None:
    models = table_models(folders)
    models["two"] = table_model(folders["two"], sizes(folders["two"]), seed=2, tied=False)
    (found,) = MergeStage.check(linear(tokenizer_source="union"), models)
    assert "its own head" in found[1]
    with pytest.raises(CandidateError, match="lm_head"):
        MergeStage.run(linear(tokenizer_source="union"), models, seed=0)


def test_a_donor_that_is_no_input() -> None:
    with pytest.raises(VocabularyError, match="not one of the merged models"):
        aligned(linear(tokenizer_source="nobody"), {})
