"""The oracle is transformers: its tokenizer's own get_vocab."""

from __future__ import annotations

import json

import pytest

from evolve.weights.vocabulary import vocabulary
from tests.tiny import make_model


def test_equals_the_vocabulary_of_transformers(tmp_path):
    from transformers import AutoTokenizer

    folder = make_model(tmp_path, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>", "ünder"])
    tokenizer.save_pretrained(folder)
    assert vocabulary(folder) == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "Unigram"])
def test_other_kinds_of_tokenizers(kind, tmp_path):
    import tokenizers

    model = {
        "WordPiece": lambda: tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        "WordLevel": lambda: tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        "Unigram": lambda: tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0),
    }[kind]()
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert vocabulary(tmp_path) == tokenizer.get_vocab(with_added_tokens=True)


def test_slow_tokenizer_files(tmp_path):
    assert vocabulary(tmp_path) is None
    (tmp_path / "spiece.model").write_bytes(b"\x01")
    digest = vocabulary(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\x02")
    assert isinstance(digest, str)
    assert vocabulary(tmp_path) != digest
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert vocabulary(tmp_path) == {"a": 0, "b": 1}
    (tmp_path / "vocab.json").write_text(json.dumps({"x": 0}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"y": 1}))
    assert vocabulary(tmp_path) == {"x": 0, "y": 1}
