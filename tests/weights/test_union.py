"""Unions of real tokenizers. The oracle is transformers, which loads what was made and encodes with it."""

from __future__ import annotations

import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

from evolve.errors import ModelError
from evolve.weights.files import contents, read_side_files
from evolve.weights.tokenizer import load_tokenizer
from evolve.weights.union import Owner, Union, text_of, union
from evolve.weights.vocabulary import vocabulary
from tests.tokenizers import TEXTS, gpt2_style, llama_style

if TYPE_CHECKING:
    from pathlib import Path

MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the")]
MORE = [*MERGES, ("a", "n"), ("an", "d"), ("Ġ", "and"), ("r", "e"), ("re", "d"), ("Ġ", "red"), ("e", "r")]
CLASSES = ["GPT2Tokenizer", "TokenizersBackend", "Qwen2Tokenizer"]


def words(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(first.replace("Ġ", "▁"), second.replace("Ġ", "▁")) for first, second in merges]


def owner(folder: Path, name: str = "other") -> Owner:
    loaded = load_tokenizer(folder, {})
    return Owner(name, folder, loaded, sorted(loaded.ids, key=lambda token: loaded.ids[token]))


def joined(first: Path, *others: Path, extra: tuple[str, ...] = ()) -> Union:
    return union(first, load_tokenizer(first, {}), {}, [owner(folder) for folder in others], extra)


def loaded(made: Union, folder: Path) -> Any:
    """Write the side files and let transformers load them, as a user will."""
    folder.mkdir()
    for name, content in read_side_files(made.files).items():
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_of_equals_the_files_stay_as_they_are(tmp_path: Path) -> None:
    one = gpt2_style(tmp_path / "one", MERGES, added=["<|im_end|>"])
    two = gpt2_style(tmp_path / "two", MERGES, added=["<|im_end|>"])
    assert joined(one, two).files == one


@pytest.mark.parametrize("kind", CLASSES)
def test_added_tokens_of_fine_tunes(kind: str, tmp_path: Path) -> None:
    one = gpt2_style(tmp_path / "one", MERGES, added=["<|im_start|>", "<|im_end|>"], tokenizer_class=kind)
    strange = {"content": " spaced\n", "special": False, "lstrip": True, "rstrip": True}
    two = gpt2_style(tmp_path / "two", MERGES, added=["<|im_end|>", "<two>", strange], tokenizer_class=kind)
    made = joined(one, two, extra=("<new>", "<two>"))
    before, after = AutoTokenizer.from_pretrained(one), loaded(made, tmp_path / "made")
    size = len(before)
    assert after.get_vocab() == {
        **before.get_vocab(),
        "<two>": size,
        " spaced\n": size + 1,
        "<new>": size + 2,
    }
    assert after.get_vocab() == dict(made.tokenizer.ids) == vocabulary(made.files)
    for text in TEXTS:
        assert encoded(after, text) == encoded(before, text)
    for token in ("<two>", "<new>", "<|im_start|>", " spaced\n"):
        assert encoded(after, token) == [after.get_vocab()[token]]
    assert after.decode(encoded(after, "the<two>hen")) == "the<two>hen"
    flags = after.added_tokens_decoder[size + 1]
    assert (flags.special, flags.lstrip, flags.rstrip, flags.single_word) == (False, True, True, False)
    assert after.added_tokens_decoder[size].special
    assert not after.added_tokens_decoder[size + 2].special


@pytest.mark.parametrize("kind", [*CLASSES, "llama"])
def test_a_tokenizer_with_more_merges(kind: str, tmp_path: Path) -> None:
    """The union with a tokenizer that goes on where the first ends encodes as the larger one, either way."""
    options: dict[str, Any] = {} if kind == "llama" else {"tokenizer_class": kind}
    style, form = (llama_style, words) if kind == "llama" else (gpt2_style, list)
    small = style(tmp_path / "small", form(MERGES), added=["<|im_end|>"], **options)
    large = style(tmp_path / "large", form(MORE), added=["<|im_end|>", "<|large|>"], **options)
    reference = AutoTokenizer.from_pretrained(large)
    plain = AutoTokenizer.from_pretrained(small)
    for name, folders in (("up", (small, large)), ("down", (large, small))):
        after = loaded(joined(*folders), tmp_path / name)
        assert after.get_vocab().keys() == reference.get_vocab().keys()
        assert len(set(after.get_vocab().values())) == len(after)
        first = AutoTokenizer.from_pretrained(folders[0])
        assert first.get_vocab().items() <= after.get_vocab().items()
        for text in (*TEXTS, "red and green, and then the inner red", "handed"):
            ids = encoded(after, text)
            assert after.convert_ids_to_tokens(ids) == reference.convert_ids_to_tokens(
                encoded(reference, text)
            )
            assert after.decode(ids) == reference.decode(encoded(reference, text))
            assert len(ids) <= len(encoded(plain, text))


@pytest.mark.parametrize("seed", range(6))
def test_unrelated_merges(seed: int, tmp_path: Path) -> None:
    """Whatever the merges: the old ids stay, nothing is cut in a new place, and new tokens are used."""
    draw = random.Random(seed)
    folders = [
        gpt2_style(tmp_path / name, _random_merges(draw), shuffle=seed) for name in ("one", "two", "three")
    ]
    made = joined(*folders)
    before, after = AutoTokenizer.from_pretrained(folders[0]), loaded(made, tmp_path / "made")
    ids = after.get_vocab()
    assert before.get_vocab().items() <= ids.items()
    assert sorted(ids.values()) == list(range(len(ids)))
    every = {token for folder in folders for token in AutoTokenizer.from_pretrained(folder).get_vocab()}
    assert ids.keys() == every
    text_list = ["".join(draw.choices("abcd \n", k=60)) for _ in range(40)]
    for text in text_list:
        old, new = before.tokenize(text), after.tokenize(text)
        assert "".join(old) == "".join(new)
        assert _cuts(new) <= _cuts(old)
        if not set(new) - set(before.get_vocab()):
            assert encoded(before, text) == encoded(after, text)
    reached = [
        token
        for token in every - before.get_vocab().keys()
        if after.tokenize(text_of(token, "bytes")) == [token]
    ]
    assert len(reached) >= 0.7 * len(every - before.get_vocab().keys())


def _random_merges(draw: random.Random) -> list[tuple[str, str]]:
    tokens, merges = list("abcdĠ"), []
    while len(merges) < 25:
        pair = (draw.choice(tokens), draw.choice(tokens[:-1] if len(merges) else "abcd"))
        joint = "".join(pair)
        if "Ġ" not in joint[1:] and len(joint) < 7 and joint not in tokens:
            merges.append(pair)
            tokens.append(joint)
    return merges


def _cuts(tokens: list[str]) -> set[int]:
    places, at = set(), 0
    for token in tokens:
        at += len(token)
        places.add(at)
    return places


def test_tokens_that_texts_are_never_cut_into_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Qwen2 takes digits one by one, so a number of another tokenizer never comes out of a text."""
    digits = [*MERGES, ("1", "2"), ("12", "3")]
    one = gpt2_style(tmp_path / "one", MERGES, tokenizer_class="Qwen2Tokenizer")
    after = loaded(joined(one, gpt2_style(tmp_path / "two", digits)), tmp_path / "made")
    assert "2 of 2 ordinary tokens" in caplog.text
    before = AutoTokenizer.from_pretrained(one)
    assert encoded(after, "the 12345") == encoded(before, "the 12345")
    assert after.decode([after.get_vocab()["123"]]) == "123"


def test_ids_with_holes_and_added_tokens_below_them(tmp_path: Path) -> None:
    """Loaders number added tokens by themselves; here that would give other ids than the file says."""
    one = gpt2_style(tmp_path / "one", MERGES, gaps={"Ġthe": 400, "</s>": 350}, added=["<a>", "<b>"])
    two = gpt2_style(tmp_path / "two", MORE, gaps={"Ġred": 777}, added=["<c>"])
    before = AutoTokenizer.from_pretrained(one).get_vocab()
    after = loaded(joined(one, two, extra=("<d>",)), tmp_path / "made").get_vocab()
    assert before.items() <= after.items()
    new = sorted(after[token] for token in after.keys() - before.keys())
    assert new == list(range(401, 401 + len(new)))
    assert {"Ġred", "<c>", "<d>"} <= after.keys() - before.keys()


def test_two_tokens_with_one_id(tmp_path: Path) -> None:
    """What loaders make of an added token that is not in a vocabulary with holes."""
    size = load_tokenizer(gpt2_style(tmp_path / "whole", MERGES), {}).size
    one = gpt2_style(tmp_path / "one", MERGES, gaps={"Ġthe": size}, added=["<a>"])
    ids = load_tokenizer(one, {}).ids
    assert ids["<a>"] == ids["Ġthe"]
    assert joined(one, one).files == one
    with pytest.raises(ModelError, match=rf"the id {size} to .*mend its tokenizer\.json"):
        joined(one, extra=("<new>",))


def test_a_reserved_token_becomes_an_added_one(tmp_path: Path) -> None:
    """In one vocabulary it is an entry that no merge leads to; the other cuts it out of texts."""
    one = gpt2_style(tmp_path / "one", MERGES, gaps={"<|im_end|>": 264})
    two = gpt2_style(tmp_path / "two", MERGES, added=["<|im_end|>"])
    assert len(encoded(AutoTokenizer.from_pretrained(one), "<|im_end|>")) > 1
    made = joined(one, two)
    assert dict(made.tokenizer.ids) == vocabulary(one)
    assert encoded(loaded(made, tmp_path / "made"), "a<|im_end|>b")[1] == 264


def test_an_added_token_that_is_spelled_like_an_ordinary_one_does_not_cut_words(tmp_path: Path) -> None:
    one = gpt2_style(tmp_path / "one", MERGES)
    two = gpt2_style(tmp_path / "two", MERGES, added=[{"content": "the", "special": False}])
    before, after = AutoTokenizer.from_pretrained(one), loaded(joined(one, two), tmp_path / "made")
    assert encoded(after, "bathe there") == encoded(before, "bathe there")


def test_merges_written_as_texts(tmp_path: Path) -> None:
    folders = [gpt2_style(tmp_path / name, merges) for name, merges in (("one", MERGES), ("two", MORE))]
    expected = dict(joined(*folders).tokenizer.ids)
    for folder in folders:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text())
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        path.write_text(json.dumps(data))
    assert dict(joined(*folders).tokenizer.ids) == expected


def test_files_for_older_readers(tmp_path: Path) -> None:
    one = gpt2_style(tmp_path / "one", MERGES, added=["<a>"])
    size = len(vocabulary(one))
    config = json.loads((one / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(size - 1): {
            "content": "<a>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "special": True,
            "single_word": False,
        }
    }
    (one / "tokenizer_config.json").write_text(json.dumps(config))
    (one / "added_tokens.json").write_text(json.dumps({"<a>": size - 1}))
    for name in ("vocab.json", "merges.txt"):
        (one / name).write_text("{}")
    made = joined(one, gpt2_style(tmp_path / "two", MERGES, added=["<b>"]))
    files = read_side_files(made.files)
    decoder = json.loads(files["tokenizer_config.json"])["added_tokens_decoder"]
    assert decoder.keys() == {str(size - 1), str(size)}
    assert decoder[str(size)]["content"] == "<b>"
    assert json.loads(files["added_tokens.json"]) == {"<a>": size - 1, "<b>": size}
    assert {"vocab.json", "merges.txt"} <= files.keys()
    # With ordinary tokens they would describe another tokenizer.
    made = joined(one, gpt2_style(tmp_path / "three", MORE))
    assert not {"vocab.json", "merges.txt"} & contents(made.files).keys()


def test_a_tokenizer_without_tokenizer_json(tmp_path: Path) -> None:
    whole = gpt2_style(tmp_path / "whole", MERGES)
    data = json.loads((whole / "tokenizer.json").read_text())
    slow = tmp_path / "slow"
    slow.mkdir()
    shutil.copy(whole / "tokenizer_config.json", slow)
    (slow / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (slow / "merges.txt").write_text("\n".join(" ".join(pair) for pair in MERGES) + "\n")
    before = AutoTokenizer.from_pretrained(slow)
    after = loaded(joined(slow, gpt2_style(tmp_path / "two", MORE, added=["<b>"])), tmp_path / "made")
    assert before.get_vocab().items() <= after.get_vocab().items()
    assert encoded(after, "<b>") == [after.get_vocab()["<b>"]]
    assert "Ġred" in after.tokenize("a red hen")


def test_a_union_of_a_union(tmp_path: Path) -> None:
    folders = [
        gpt2_style(tmp_path / name, merges, added=[f"<{name}>"])
        for name, merges in (("one", MERGES), ("two", MORE), ("three", MERGES))
    ]
    at_once = joined(*folders)
    first = joined(*folders[:2])
    stepwise = union(first.files, first.tokenizer, {}, [owner(folders[2])], ())
    assert dict(stepwise.tokenizer.ids) == dict(at_once.tokenizer.ids)


def test_kinds_that_have_no_union(tmp_path: Path) -> None:
    one = gpt2_style(tmp_path / "one", MERGES)
    with pytest.raises(ModelError, match=r"'other' has \d+ ordinary tokens.*another kind.*source: NAME"):
        joined(one, llama_style(tmp_path / "two"))
    import tokenizers

    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    unigram.add_special_tokens(["<x>"])
    (tmp_path / "three").mkdir()
    unigram.save(str(tmp_path / "three" / "tokenizer.json"))
    # Its one ordinary token is known already, so there is nothing to refuse.
    assert joined(one, tmp_path / "three").tokenizer.ids["<x>"] == load_tokenizer(one, {}).size
    with pytest.raises(ModelError, match="not a BPE"):
        joined(tmp_path / "three", one)
    assert joined(tmp_path / "three", extra=("<new>",)).tokenizer.ids == {
        "<unk>": 0,
        "a": 1,
        "<x>": 2,
        "<new>": 3,
    }


def test_a_folder_without_a_tokenizer_or_with_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer: copy its tokenizer\.json"):
        load_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(ModelError, match="cannot load the tokenizer in"):
        load_tokenizer(tmp_path, {})
