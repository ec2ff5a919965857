"""Merges that are added to a tokenizer: what every text keeps, and that every new token comes out."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import ModelError
from evolve.weights.bpe import bpe_of, extended, unreached
from evolve.weights.files import contents, read_content
from evolve.weights.tokenizer import load_tokenizer
from tests.tokenizers import TEXTS, gpt2_style, llama_style

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.tokenizer import Tokenizer
    from evolve.weights.union import Union

CONFIG: dict[str, Any] = {"model_type": "llama"}
OLD = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n")]
NEW = {
    "bytes": [("the", "n"), ("Ġ", "the"), ("Ġ", "then"), ("an", "an"), ("Ã", "¯"), ("a", "a"), ("aa", "a")],
    "words": [("the", "n"), ("▁", "the"), ("▁", "then"), ("an", "an"), ("a", "a"), ("aa", "a")],
}
PIECES = st.sampled_from(
    ["the", "then", " ", "an", "a", "in", "th", "n", "\n", "naï", "東", "🙂", "<s>", "."]
)
TEXT = st.lists(PIECES | st.text(max_size=4), max_size=20).map("".join)


def write(folder: Path, style: str, **keys: Any) -> Path:
    if style == "bytes":
        return gpt2_style(folder, [*OLD, ("Ġ", "t")], **keys)
    return llama_style(folder, [*OLD, ("▁", "t")], **keys)


@pytest.fixture(scope="module", params=["bytes", "words"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Union]:
    folder = write(tmp_path_factory.mktemp(request.param), request.param)
    old = load_tokenizer(folder, CONFIG)
    return old, extended(folder, old, CONFIG, NEW[request.param])


@given(text=TEXT)
def test_round_trips_and_kept_ids(pair: tuple[Tokenizer, Union], text: str) -> None:
    old, made = pair
    before, after = old.encode([text])[0], made.tokenizer.encode([text])[0]
    decode = made.tokenizer.backend.decode
    assert decode(after, skip_special_tokens=False) == old.backend.decode(before, skip_special_tokens=False)
    if "▁" not in old.ids:
        assert decode(after, skip_special_tokens=False) == text
    assert len(after) <= len(before)
    by_id = {number: token for token, number in old.ids.items()}
    style = "words" if "▁" in old.ids else "bytes"
    tokens = [by_id[number] for number in before]
    if not set(NEW[style]) & set(pairwise(tokens)):
        assert after == before


def test_ids_go_on_behind_the_last_and_every_new_token_is_made(pair: tuple[Tokenizer, Union]) -> None:
    old, made = pair
    new = made.tokenizer.ids
    assert {token: new[token] for token in old.ids} == old.ids
    style = "words" if "▁" in old.ids else "bytes"
    names = [left + right for left, right in NEW[style]]
    assert [new[name] for name in names] == [*range(old.size, old.size + len(names))]
    assert sorted(new.values()) == [*range(made.tokenizer.size)]
    assert unreached(made.tokenizer, names) == []
    # Through the whole tokenizer, as a text; half a character has no text of its own.
    for name in names:
        if name == "Ã¯":
            assert new[name] in made.tokenizer.encode(["naïve"])[0]
            continue
        text = ("x" if name[0] not in "Ġ▁" else "") + name.replace("Ġ", " ").replace("▁", " ")
        assert new[name] in made.tokenizer.encode([text.strip() if style == "words" else text])[0], name


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("as_text", [False, True])
def test_both_ways_to_write_merges_and_ignore_merges(tmp_path: Path, as_text: bool, ignore: bool) -> None:
    folder = write(tmp_path / "t", "bytes", added=["<|im_end|>"], tokenizer_class="PreTrainedTokenizerFast")
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["ignore_merges"] = ignore
    if as_text:
        data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    file.write_text(json.dumps(data))
    old = load_tokenizer(folder, CONFIG)
    made = extended(folder, old, CONFIG, NEW["bytes"])
    written = json.loads(read_content(contents(made.files)["tokenizer.json"]))
    assert written["model"]["ignore_merges"] is ignore
    assert {type(merge) for merge in written["model"]["merges"]} == {str if as_text else list}
    assert written["model"]["merges"][: len(data["model"]["merges"])] == data["model"]["merges"]
    # An added token behind the vocabulary keeps its id, although the vocabulary now ends behind it.
    assert made.tokenizer.ids["<|im_end|>"] == old.ids["<|im_end|>"]
    assert "<|im_end|>" in made.tokenizer.added
    for text, ids in zip(TEXTS, made.tokenizer.encode(TEXTS), strict=True):
        assert made.tokenizer.backend.decode(ids, skip_special_tokens=False) == text


def test_the_walk_finds_a_token_that_nothing_makes(tmp_path: Path) -> None:
    """Whole words come out by ignore_merges alone; the walk must not be taken in by that."""
    folder = write(tmp_path / "t", "bytes", tokenizer_class="PreTrainedTokenizerFast")
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["ignore_merges"] = True
    data["model"]["vocab"]["xyz"] = len(data["model"]["vocab"])
    file.write_text(json.dumps(data))
    tokenizer = load_tokenizer(folder, CONFIG)
    assert tokenizer.encode(["xyz"]) == [[tokenizer.ids["xyz"]]]
    assert unreached(tokenizer, ["the", "xyz"]) == ["xyz"]


@pytest.mark.parametrize("merge", [("th", "e"), ("q", "zz"), ("zz", "q")])
def test_a_merge_of_nothing_or_to_nothing_new_is_refused(tmp_path: Path, merge: tuple[str, str]) -> None:
    folder = write(tmp_path / "t", "bytes")
    with pytest.raises(ModelError, match="no two tokens that make a new one"):
        extended(folder, load_tokenizer(folder, CONFIG), CONFIG, [merge])


def test_no_merges_change_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", "bytes")
    assert extended(folder, load_tokenizer(folder, CONFIG), CONFIG, []).files == folder


def test_other_kinds_of_tokenizers_are_refused_with_the_mend(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE, Unigram, WordPiece
    from transformers import PreTrainedTokenizerFast

    models = {
        "a Unigram": Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0),
        "a WordPiece": WordPiece({"<unk>": 0, "a": 1, "##b": 2}, unk_token="<unk>"),
        "marks where words go on": BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"),
    }
    for number, (words, model) in enumerate(models.items()):
        folder = tmp_path / str(number)
        PreTrainedTokenizerFast(tokenizer_object=Backend(model)).save_pretrained(folder)
        with pytest.raises(ModelError, match=words) as caught:
            bpe_of(load_tokenizer(folder, {"model_type": "llama"}))
        assert "use a model with such a tokenizer" in str(caught.value)
