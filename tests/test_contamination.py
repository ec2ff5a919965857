"""The guard as a user meets it: errors before a search, warnings, and lines in the report."""

from __future__ import annotations

import json

import pytest

from evolve import contamination
from evolve.config.load import load
from evolve.errors import ConfigError
from evolve.validation import check
from tests.cli.kit import call, read_json
from tests.small import make_search


def rewrite(folder, change):
    """Change the texts of the items."""
    file = folder / "tasks" / "tiny_choice.jsonl"
    docs = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(index, doc)) + "\n" for index, doc in enumerate(docs)))


def passage(index, doc):
    """Ten items ask about each of six passages."""
    words = " ".join(f"p{index % 6}word{n}" for n in range(20))
    return {**doc, "question": f"{words} {doc['question']}"}


def unique(index, doc):
    return {**doc, "question": " ".join(f"i{index}word{n}" for n in range(20))}


def test_questions_on_one_passage_are_an_error_unless_allowed(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, passage)
    with pytest.raises(
        ConfigError, match=r"score.tasks.0.task: 20 search items share text with holdout"
    ) as caught:
        check(load(config), runs=tmp_path / "runs")
    assert "score.shared_text: report" in str(caught.value)
    found = check(load(config, ["score.shared_text=report"]), runs=tmp_path / "runs")
    assert any("share text with holdout items" in warning for warning in found.warnings)


def test_a_copied_item_is_found_in_the_corpus_of_a_recipe(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, unique)
    text = tmp_path / "corpus.txt"
    quiz = "\n\n".join("A quiz: " + unique(index, {})["question"] for index in range(60))
    text.write_text(f"Some other text.\n\n{quiz}\n")
    merge = {
        "merge_method": "fisher",
        "models": [
            {"model": name, "parameters": {"weight": {"low": 0, "high": 1}}} for name in ("one", "two")
        ],
        "statistics": {"path": str(text), "max_tokens": 64},
    }
    override = f"pipeline=[{json.dumps({'merge': merge})}]"
    where = ("--runs", tmp_path / "runs")
    facts = read_json_of_validate(config, override, *where)
    shared = {(one["split"]): one["shared"] for one in facts["overlaps"]}
    assert shared == {"search": 20, "holdout": 20} and all(
        one["corpus"] == str(text) for one in facts["overlaps"]
    )
    assert any("20 of 20 holdout items" in warning for warning in facts["warnings"])
    said = call("validate", config, override, *where)
    assert "overlap with" in said.stdout and "share text with" in said.stderr


def read_json_of_validate(config, *args):
    return read_json("validate", config, *args)


def test_items_that_share_nothing(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, unique)
    found = check(load(config), runs=tmp_path / "runs")
    assert found.overlaps == () and not any("share text" in warning for warning in found.warnings)


def test_a_copied_item_is_found_in_conversations_too(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, unique)
    asked = (unique(index, {"question": ""})["question"] for index in range(60))
    lines = (json.dumps({"messages": [{"role": "user", "content": text}]}) for text in asked)
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    distill = {
        "model": "one",
        "dataset": {"path": str(tmp_path / "talk.jsonl")},
        "loss_functions": [{"function": "cross_entropy"}],
        "training_args": {"learning_rate": {"low": 1e-5, "high": 1e-3}},
    }
    loaded = load(config, [f"pipeline={json.dumps([{'distill': distill}])}"])
    [(path, documents)] = contamination.corpora(loaded)
    assert path == str(tmp_path / "talk.jsonl")
    assert sum("word19" in text for text in documents) == 60


def test_what_must_not_be_learned_is_no_corpus(tmp_path):
    config = make_search(tmp_path)
    items, asked = tmp_path / "items.jsonl", tmp_path / "prompts.jsonl"
    items.write_text('{"question": "a b c d e f"}\n')
    asked.write_text('{"prompt": "what is this"}\n')
    distill = {
        "model": "one",
        "teacher": {"kind": "api", "base_url": "http://127.0.0.1:1/v1", "model": "big"},
        "generate": {"prompts": str(asked), "filters": {"ngram_overlap": 5, "banned": str(items)}},
        "loss_functions": [{"function": "cross_entropy"}],
    }
    loaded = load(config, [f"pipeline=[{json.dumps({'distill': distill})}]"])
    assert [name for name, _ in contamination.corpora(loaded)] == [str(asked)]
