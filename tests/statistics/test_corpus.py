from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import UserError
from evolve.statistics.corpus import Corpus, documents, problem, sequences
from evolve.weights.content import file_content

if TYPE_CHECKING:
    from pathlib import Path


def corpus_of(path: Path, **settings: int) -> Corpus:
    return Corpus(str(path), file_content(path), **settings)


def test_documents_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["one", "zwei ü", "three\nlines\n\nin one", "", "\u2028 and \u0000"]
    path.write_text(
        "\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts) + "\n\n  \n", "utf-8"
    )
    assert sorted(documents(corpus_of(path))) == sorted(texts)


def test_documents_of_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\nmore of one\n\n \t\r\ntwo\r\n\nthree".encode())
    assert sorted(documents(corpus_of(path))) == ["one\nmore of one", "three", "two"]


def test_the_seed_decides_the_order(text: Path) -> None:
    orders = {seed: list(documents(corpus_of(text, seed=seed))) for seed in (0, 1)}
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] == list(documents(corpus_of(text, seed=0)))
    # Known values: another order would be another corpus under the same name.
    assert [json.loads(line)["text"] for line in text.read_text().splitlines()] != orders[0]
    assert [entry.split()[2] for entry in orders[0][:4]] == ["0", "38", "21", "2"]


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(2, 30), st.integers(2, 9), st.integers(0, 3))
def test_sequences_are_the_documents_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int, length: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("c") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * size}) + "\n" for size in sizes))
    corpus = corpus_of(path, max_tokens=most, sequence_length=length, seed=seed)
    whole = [token for document in documents(corpus) for token in [*range(len(document)), 99]]
    found = [s.tolist() for s in sequences(corpus, lambda t: [*range(len(t)), 99])]
    joined = [token for one in found for token in one]
    assert joined == whole[: len(joined)]
    wanted = min(most, len(whole))
    assert wanted - 1 <= len(joined) <= wanted, "all, but for a single token at the end"
    assert all(len(one) == length for one in found[:-1])
    assert all(2 <= len(one) <= length for one in found)


def test_only_as_much_is_encoded_as_is_needed(text: Path) -> None:
    encoded = []
    list(
        sequences(corpus_of(text, max_tokens=20, sequence_length=10), lambda t: encoded.append(t) or [1] * 15)
    )
    assert len(encoded) == 2


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r":2: expected a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r":2: expected a JSON object"),
        ("a.jsonl", b'{"txt": "x"}\n', r":1: expected a JSON object with a \"text\""),
        ("a.jsonl", b"not json\n", r":1: expected a JSON"),
        ("a.jsonl", b"[" * 100_000, r":1: expected a JSON"),
        ("a.txt", b"good\n\n\xff\xfe bad", r":3: expected UTF-8"),
    ],
)
def test_what_is_no_text(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        list(documents(corpus_of(path)))


def test_a_file_that_changed(text: Path) -> None:
    corpus = corpus_of(text)
    text.write_text(text.read_text() + '{"text": "more"}\n')
    with pytest.raises(UserError, match="changed"):
        list(documents(corpus))
    text.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        list(documents(corpus))


def test_problems_are_seen_at_the_beginning(tmp_path: Path, text: Path) -> None:
    assert problem(text) == ""
    assert "no such file" in problem(tmp_path / "nothing.jsonl")
    assert "folder" in problem(tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    assert "no text" in problem(empty)
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\x80\x02\xff")
    assert "UTF-8" in problem(binary)


def test_the_key_says_what_is_read_and_not_where(text: Path) -> None:
    corpus = corpus_of(text)
    moved = replace(corpus, path="elsewhere")
    assert corpus.key == moved.key
    for change in ({"max_tokens": 7}, {"sequence_length": 7}, {"seed": 7}, {"content": "sha256:0"}):
        assert replace(corpus, **change).key != corpus.key
