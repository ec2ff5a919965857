from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evolve.errors import ModelError, UserError
from evolve.training.documents import Documents, choose, cut

if TYPE_CHECKING:
    from pathlib import Path


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "quality": len(text)}) + "\n" for text in texts))
    return path


def test_a_folder_of_every_kind(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    write_lines(folder / "a.jsonl", ["one", "two"])
    (folder / "deep" / "b.txt").write_text("three\n\nfour")
    (folder / "deep" / "c.py").write_text("no text")
    (folder / ".hidden.txt").write_text("hidden")
    parquet.write_table(
        pyarrow.table({"text": ["five", "sechs ü"], "quality": [2.5, 1.0]}), folder / "d.parquet"
    )
    documents = Documents(folder)
    texts = ["one", "two", "five", "sechs ü", "three", "four"]
    assert list(documents.texts(range(len(documents)))) == texts
    assert list(documents.texts([5, 0, 3, 0])) == ["four", "one", "sechs ü", "one"]
    assert list(documents.numbers_at("quality", [2, 0])) == [2.5, 3.0]
    before = documents.content
    (folder / "deep" / "b.txt").rename(folder / "deep" / "z.txt")
    assert Documents(folder).content != before, "names decide the order"
    (folder / "deep" / "z.txt").rename(folder / "deep" / "b.txt")
    assert Documents(folder).content == before


def test_what_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="holds no text"):
        Documents(tmp_path / "empty.txt")
    with pytest.raises(ModelError, match="No such file"):
        Documents(tmp_path / "missing.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"no text file: known are \.jsonl"):
        Documents(tmp_path / "folder")
    path = write_lines(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(UserError, match="it changed"):
        Documents(path, content="sha256:" + 64 * "0")
    with pytest.raises(UserError, match="no finite number under 'rank'"):
        list(Documents(path).numbers_at("rank", [0]))
    (tmp_path / "b.txt").write_text("plain")
    with pytest.raises(UserError, match="only lines of JSON"):
        list(Documents(tmp_path / "b.txt").numbers_at("quality", [0]))
    (tmp_path / "c.parquet").write_text("plain")
    with pytest.raises(UserError, match="as parquet"):
        Documents(tmp_path / "c.parquet")


def test_a_reader_makes_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    documents = Documents(path, read=lambda entry: entry["prompt"] + entry["completion"])
    assert list(documents.texts([0])) == ["ab"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=20),
    most=st.one_of(st.none(), st.integers(1, 60)),
    dedup=st.booleans(),
    seed=st.integers(0, 3),
)
def test_a_budget_is_the_beginning_of_one_order(
    tmp_path: Path, texts: list[str], most: int | None, dedup: bool, seed: int
) -> None:
    documents = Documents(write_lines(tmp_path / "a.jsonl", texts))
    if not any(text.strip() for text in texts):
        with pytest.raises(UserError, match="not empty"):
            choose(documents, seed=seed)
        return
    whole = choose(documents, seed=seed, dedup=dedup)
    kept = list(whole.texts())
    # Brute force: every text that is not blank, once where duplicates go.
    wanted = [text.encode("utf-8", "replace").decode() for text in texts if text.strip()]
    if dedup:
        assert len({text.strip() for text in kept}) == len(kept) == len({text.strip() for text in wanted})
        assert set(kept) <= set(wanted)
    else:
        assert sorted(kept) == sorted(wanted)
    assert whole.bytes == sum(len(text.encode()) for text in kept)
    if most is None:
        return
    part = choose(documents, seed=seed, max_bytes=most, dedup=dedup)
    assert part.bytes == min(most, whole.bytes)
    again = whole.first(most)
    assert again.numbers.tolist() == part.numbers.tolist()
    assert again.sizes.tolist() == part.sizes.tolist()
    found = "".join(part.texts())
    assert "".join(kept).startswith(found)
    assert part.bytes - len(found.encode()) < 4, "cut at the end of a character"


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n')
    assert list(choose(Documents(path), seed=0).texts()) == ["a?b"]
    assert cut("aéb", 2) == "a"


def test_left_out_is_counted(tmp_path: Path) -> None:
    documents = Documents(write_lines(tmp_path / "a.jsonl", ["x", " ", "x", "", "y", "x "]))
    assert choose(documents, seed=0, dedup=True).left_out == {"empty": 2, "duplicates": 2}
    assert choose(documents, seed=0).left_out == {"empty": 2, "duplicates": 0}
