"""The keys of a merge that choose its tokenizer: every flaw where it is, and whose names are renamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evolve.config.load import load_text
from tests.config.text import at, only_problem, problems

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER = """\
models: {base: models/base, math: models/math}
pipeline:
  - merge:
      merge_method: linear
      models:
        - {model: base, parameters: {weight: 1}}
        - {model: math, parameters: {weight: 1}}
      tokenizer:
        source: math
        tokens:
          <|im_end|>: {source: math, force: true}
          a.b: {source: {kind: model_token, model: base, token: x}}
          model: {source: {kind: zero}}
        pad_to_multiple_of: 8
"""


@pytest.mark.parametrize(
    ("old", "new", "word", "path", "text"),
    [
        ("        source: math", "        sorce: math", "sorce", "sorce", "did you mean 'source'"),
        (
            "source: math, force",
            "surce: math, force",
            "surce",
            "tokens.<|im_end|>.surce",
            "did you mean 'source'",
        ),
        ("force: true", "force: 17", "17", "tokens.<|im_end|>.force", "expected true or false"),
        ("        source: math", "        source: mth", "mth", "source", "did you mean 'math'"),
        ("{source: math,", "{source: mth,", "mth", "tokens.<|im_end|>.source", "did you mean 'math'"),
        ("model: base, token", "model: bse, token", "bse", "tokens.a.b.source.model", "did you mean 'base'"),
        ("token: x", "tokn: x", "tokn", "tokens.a.b.source.tokn", "did you mean 'token'"),
        ("token: x", "token_id: -1", "-1", "tokens.a.b.source.token_id", "at least 0"),
        ("kind: zero", "kind: zeros", "{kind: zeros", "tokens.model.source", "expected the name of a model"),
        ("multiple_of: 8", "multiple_of: 0", "0\n", "pad_to_multiple_of", "at least 1"),
        ("multiple_of: 8", "multiple_of: {low: 1, high: 8}", "{low", "pad_to_multiple_of", "a whole number"),
    ],
)
def test_flaws_of_a_tokenizer_are_shown_where_they_are(
    old: str, new: str, word: str, path: str, text: str
) -> None:
    load_text(TOKENIZER, "c.yaml")
    bad = TOKENIZER.replace(old, new, 1)
    found = {(problem.where, problem.path): problem.message for problem in problems(bad)}
    place = (at(bad, word), f"pipeline.0.merge.tokenizer.{path}")
    assert place in found, found
    assert text in found[place]


def test_one_token_of_a_model_by_text_or_by_number() -> None:
    for rest in ("model: base}", "model: base, token: x, token_id: 3}"):
        bad = TOKENIZER.replace("model: base, token: x}", rest)
        assert any("give either token or token_id" in problem.message for problem in problems(bad))


def test_both_keys_of_a_tokenizer() -> None:
    problem = only_problem(TOKENIZER + "      tokenizer_source: union\n")
    assert problem.path == "pipeline.0.merge.tokenizer_source"
    assert "exclude each other" in problem.message


def test_models_of_a_tokenizer_are_renamed_and_tokens_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
    text = """\
merge_method: linear
models:
  - {model: a/x, parameters: {weight: 1}}
  - {model: b/x, parameters: {weight: 1}}
tokenizer:
  source: a/x
  tokens:
    a/x: {source: b/x}
    model: {source: {kind: model_token, model: b/x, token: a/x}}
"""
    block = load_text(text, "merge.yml").config.pipeline[0]["merge"]
    assert block["tokenizer"] == {
        "source": "x",
        "tokens": {
            "a/x": {"source": "b-x", "force": False},
            "model": {"source": {"kind": "model_token", "model": "b-x", "token": "a/x"}, "force": False},
        },
    }
    for word in ("union", "base"):
        based = text.replace("source: a/x\n", f"source: {word}\n") + "base_model: a/x\n"
        assert load_text(based, "merge.yml").config.pipeline[0]["merge"]["tokenizer"]["source"] == word
