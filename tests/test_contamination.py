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


def passages(number):
    """Return a change after which as many items ask about each of so many passages."""

    def passage(index, doc):
        words = " ".join(f"p{index % number}word{n}" for n in range(20))
        return {**doc, "question": f"{words} {doc['question']}"}

    return passage


def unique(index, doc):
    return {**doc, "question": " ".join(f"i{index}word{n}" for n in range(20))}


@pytest.mark.parametrize("number", [6, 5], ids=["10 questions a passage", "12 questions a passage"])
def test_questions_on_one_passage_are_an_error_unless_allowed(tmp_path, number):
    config = make_search(tmp_path)
    rewrite(tmp_path, passages(number))
    with pytest.raises(
        ConfigError, match=r"score.tasks.0.task: 20 search items share text with holdout"
    ) as caught:
        check(load(config), runs=tmp_path / "runs")
    assert "score.shared_text: report" in str(caught.value)
    found = check(load(config, ["score.shared_text=report"]), runs=tmp_path / "runs")
    assert any("share text with holdout items" in warning for warning in found.warnings)


def test_what_counts_as_template_is_said(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, passages(1))
    found = check(load(config), runs=tmp_path / "runs")
    [said] = [warning for warning in found.warnings if "template" in warning]
    # 20 items of the search and 20 of the holdout are drawn.
    assert "p0word" in said and "in 40 of 40" in said


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


def quiz(*numbers):
    """Return a document for each item: what it asks."""
    return ["A quiz: " + unique(number, {})["question"] for number in numbers]


def as_lines(documents):
    return "".join(json.dumps({"text": text}) + "\n" for text in documents)


def trained_on(place):
    """Return the override by which one stage of continual pre-training reads a corpus."""
    stage = {
        "model": "one",
        "dataset": {"path": str(place), "max_length": 64},
        "wise_ft": {"alpha": {"low": 0, "high": 1}},
        "training_args": {"learning_rate": {"low": 1e-5, "high": 1e-3}},
    }
    return f"pipeline={json.dumps([{'cpt': stage}])}"


def overlaps_of(config, place, tmp_path, *more):
    found = check(load(config, [trained_on(place), *more]), runs=tmp_path / "runs")
    return {one.split: one for one in found.overlaps}, found.warnings


def test_folders_and_parquet_are_read_as_a_training_reads_them(tmp_path):
    import pyarrow
    from pyarrow import parquet

    config = make_search(tmp_path)
    rewrite(tmp_path, unique)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("\n\n".join(quiz(*range(20))))
    (corpus / "b.jsonl").write_text(as_lines(quiz(*range(20, 40))))
    parquet.write_table(pyarrow.table({"text": quiz(*range(40, 60))}), corpus / "c.parquet")
    found, _ = overlaps_of(config, corpus, tmp_path)
    assert {split: one.shared for split, one in found.items()} == {"search": 20, "holdout": 20}
    alone, _ = overlaps_of(config, corpus / "c.parquet", tmp_path)
    parts = [overlaps_of(config, corpus / name, tmp_path)[0] for name in ("a.txt", "b.jsonl")]
    for split in ("search", "holdout"):
        assert sum(one[split].shared for one in (alone, *parts)) == 20 and alone[split].shared > 0


def test_what_cannot_be_read_is_not_called_clean(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, unique)
    lines = as_lines(quiz(*range(60))).splitlines(keepends=True)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("".join([*lines[:10], "{no json\n", *lines[10:]]))
    found, warnings = overlaps_of(config, broken, tmp_path)
    assert 0 < sum(one.shared for one in found.values()) <= 10
    assert all("broken.jsonl:11" in one.unread for one in found.values())
    assert sum("could not be read to its end" in warning for warning in warnings) == 1
    said = call("validate", config, trained_on(broken), "--runs", tmp_path / "runs")
    assert "at least" in said.stdout and "could not be read" in said.stderr


def test_a_held_out_text_that_is_trained_on_is_found_also_without_tasks(tmp_path):
    config = make_search(tmp_path)
    rewrite(tmp_path, unique)
    held = tmp_path / "held.txt"
    lines = quiz(*range(100, 140))
    held.write_text("\n".join(lines))
    scorers = json.dumps([{"bits_per_byte": {"path": str(held), "chunk_bytes": 200}}])
    both = ["score.tasks=[]", f"score.scorers={scorers}"]
    chunks, warnings = overlaps_of(config, held, tmp_path, *both)
    for split in ("search", "holdout"):
        assert chunks[split].task == "bits_per_byte"
        assert chunks[split].shared == chunks[split].items > 0
    assert any("of bits_per_byte share text with" in warning for warning in warnings)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(quiz(*range(200, 240))))
    chunks, _ = overlaps_of(config, other, tmp_path, *both)
    assert all(one.shared == 0 and one.items > 0 for one in chunks.values())
