"""Where tokens end in a text, against the text itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.weights.token_bytes import NotItself, TokenBytes
from evolve.weights.tokenizer import load_tokenizer
from tests.tokenizers import TEXTS, gpt2_style, llama_style

if TYPE_CHECKING:
    from pathlib import Path

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
CONFIG = {"model_type": "llama"}


@pytest.fixture(scope="module", params=["bytes", "words"])
def tokenizer(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bytes":
        gpt2_style(folder, MERGES, added=["<|im_end|>"])
    else:
        llama_style(folder, [("t", "h"), ("th", "e"), ("▁", "the")], added=["<|im_end|>"])
    return load_tokenizer(folder, CONFIG)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_stand_for_their_text(tokenizer: Any, text: str) -> None:
    table = TokenBytes.of(tokenizer)
    [ids] = tokenizer.encode([text])
    raw = text.encode()
    ends = table.ends(ids, raw)
    assert ends == sorted(ends) and (not ids or ends[-1] == len(raw))
    if not (table.prepends and text.startswith(" ")):
        assert table.text(ids) == raw
    starts = [0, *ends]
    for token, begin, end in zip(ids, starts, ends, strict=False):
        own = table.table[token]
        assert raw[begin:end] in (own, own[1:])


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_comes_back_or_is_refused(tokenizer: Any, text: str) -> None:
    table = TokenBytes.of(tokenizer)
    [ids] = tokenizer.encode([text])
    try:
        ends = table.ends(ids, text.encode())
    except NotItself:
        # ▁ itself is written as a space: that text is another one.
        assert "▁" in text
        return
    assert not ids or ends[-1] == len(text.encode())


def test_other_texts_are_refused(tokenizer: Any) -> None:
    table = TokenBytes.of(tokenizer)
    [ids] = tokenizer.encode(["the hen"])
    with pytest.raises(NotItself):
        table.ends(ids, b"the men")
    with pytest.raises(NotItself, match="no token"):
        table.text([10_000])
