"""What a search does once with vocabularies, and chat templates, which need none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.stages.memo import Memo
from evolve.stages.merge import MergeStage, vocabulary
from evolve.stages.merge.vocabulary import aligned
from evolve.weights.vocabulary import vocabulary as read_vocabulary
from tests.stages.merge.memory import block
from tests.stages.merge.vocabularies import (
    EMBEDDING,
    MERGES,
    WEIGHTS,
    aligned_rows,
    linear,
    sizes,
    table_model,
    table_models,
    three_tokenizers,
    transformers_tokenizer,
)
from tests.tokenizers import gpt2_style

if TYPE_CHECKING:
    from evolve.weights.model import Model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return three_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def test_a_search_reads_tokenizers_once(
    folders: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []
    load = vocabulary._vocabularies
    monkeypatch.setattr(vocabulary, "_vocabularies", lambda models: calls.append(1) or load(models))
    vocabulary._common.cache_clear()
    models = table_models(folders)
    for weight in (0.1, 0.2, 0.3):
        entries = {name: {"weight": weight} for name in models}
        MergeStage.run(block("linear", entries, tokenizer_source="union"), models, seed=0)
        # Another stage's output: a new object with the same headers.
        models["two"] = replace(models["two"], tensor=lambda name, of=models["two"].tensor: of(name) + 1)
    assert len(calls) == 1
    MergeStage.run(linear(tokenizer_source="base", base_model="base"), models, seed=0)
    assert len(calls) == 2
    changed = gpt2_style(tmp_path / "changed", MERGES)
    for added in ("<a>", "<b>"):
        gpt2_style(changed, MERGES, added=[added])
        models["two"] = table_model(changed, sizes(changed), seed=2)
        result = MergeStage.run(linear(tokenizer_source="union"), models, seed=0)
        assert added in read_vocabulary(result.files)


def test_a_memo_keeps_models_and_tables_of_parents(folders: Any) -> None:
    """What else is kept for a search is kept by model: the aligned ones must be the same objects again."""
    reads = []
    models = table_models(folders)
    for name, model in models.items():
        counted = lambda table, of=model.tensor, name=name: reads.append(name) or of(table)  # noqa: E731
        models[name] = replace(model, tensor=counted)
    config = linear(tokenizer={"pad_to_multiple_of": 16}, chat_template="chatml")
    memo = Memo()
    first = aligned(config, models, memo)
    kept = {name: model.tensor(EMBEDDING) for name, model in first.items()}
    before = len(reads)
    again = aligned(config, dict(models), memo)
    assert all(again[name] is first[name] for name in models)
    assert all(again[name].tensor(EMBEDDING) is kept[name] for name in models)
    assert len(reads) == before + len(models), "only the sizes of tables are looked at"
    assert memo.nbytes == sum(table.nbytes for table in kept.values())
    plain = aligned(config, models)
    assert all(torch.equal(plain[name].tensor(EMBEDDING), kept[name]) for name in models)
    # Another vocabulary of the same models, and other models of the same vocabulary.
    other = aligned(linear(tokenizer_source="two"), models, memo)
    assert other["base"].tensor(EMBEDDING).shape != kept["base"].shape
    models["two"] = replace(models["two"], tensor=lambda table: torch.ones(models["two"].specs[table].shape))
    fresh = aligned(config, models, memo)
    assert fresh["two"] is not first["two"]
    assert not torch.equal(fresh["two"].tensor(EMBEDDING), kept["two"])
    small = Memo(limit=0)
    assert torch.equal(
        aligned(config, models, small)["two"].tensor(EMBEDDING), fresh["two"].tensor(EMBEDDING)
    )
    assert small.nbytes == 0


def test_of_each_key_a_memo_keeps_the_last_answer() -> None:
    memo, calls = Memo(), []
    models = tuple(table_model(Path("nowhere"), 3, seed=seed) for seed in range(2))

    def ask(key: Any, *asked: Model) -> int:
        return memo.latest(key, asked, lambda: calls.append(key) or len(calls))

    assert [ask("a", *models), ask("a", *models), ask("b", *models), ask("a", *models)] == [1, 1, 2, 1]
    assert ask("a", models[1], models[0]) == 3
    assert ask("a", *models) == 4
    assert ask("a", models[0]) == 5
    assert [ask(number, *models) for number in range(20)] == list(range(6, 26))
    assert ask("b", *models) == 26


def test_the_answer_holds_no_weights(folders: Any) -> None:
    """The weights are those of the models at hand, whatever was merged before."""
    for seed in (10, 20):
        models = {
            name: table_model(folder, sizes(folder), seed=seed + place)
            for place, (name, folder) in enumerate(folders.items())
        }
        result = MergeStage.run(linear(tokenizer_source="union"), models, seed=0)
        ids = read_vocabulary(result.files)
        expected = sum(
            WEIGHTS[n] * found for n, found in aligned_rows(models, EMBEDDING, ids, len(ids)).items()
        )
        assert np.allclose(result.tensor(EMBEDDING).numpy(), expected, atol=5e-7)


def test_chat_templates(folders: Any, tmp_path: Path) -> None:
    for name, text in (("base", "{{ 'b' }}"), ("one", "{{ 'o' }}"), ("two", "{{ 'o' }}")):
        target = tmp_path / name
        gpt2_style(target, MERGES)
        (target / "chat_template.jinja").write_text(text)
    models = {name: table_model(tmp_path / name, 300, seed=0) for name in WEIGHTS}

    def template(**keys: Any) -> Any:
        config = linear(base_model="base", **keys)
        assert config.problems() == []
        assert MergeStage.check(config, models) == []
        made = tmp_path / f"made{len(list(tmp_path.iterdir()))}"
        return transformers_tokenizer(MergeStage.run(config, models, seed=0).files, made).chat_template

    assert template() == "{{ 'b' }}"
    assert template(chat_template="auto") == "{{ 'o' }}"
    assert template(chat_template="auto", tokenizer_source="two") == "{{ 'o' }}"
    assert "<|im_start|>" in template(chat_template="chatml", tokenizer_source="union")
    assert template(chat_template="{{ messages | length }}") == "{{ messages | length }}"
    config = linear(chat_template="{% for %}")
    ((path, message),) = MergeStage.check(config, models)
    assert path == "chat_template"
    assert "line 1" in message
    with pytest.raises(CandidateError, match="no Jinja"):
        MergeStage.run(config, models, seed=0)


def test_templates_alone_leave_the_vocabularies_to_be_compared(folders: Any) -> None:
    found = MergeStage.check(linear(chat_template="chatml"), table_models(folders))
    assert "tokens differ" in found[0][1]
