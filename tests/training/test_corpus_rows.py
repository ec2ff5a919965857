from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evolve.training.corpus_rows import Layout, Replay, make_rows
from evolve.training.documents import Chosen, Documents, choose
from evolve.training.order import curriculum

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evolve.training.rows import Rows


def encode(texts: Sequence[str]) -> list[list[int]]:
    """A byte is a token; 256 ends a document."""
    return [[*text.encode(), 256] for text in texts]


def corpus(path: Path, count: int, word: str) -> Documents:
    lines = [json.dumps({"text": f"{word} {index} " * (1 + index % 5)}) + "\n" for index in range(count)]
    path.write_text("".join(lines))
    return Documents(path)


def bytes_of(rows: Rows, part: str) -> int:
    return sum(int((row.tokens != 256).sum()) for row in rows.rows if row.part == part)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_total_of_bytes_stays_the_same(tmp_path: Path, share: float, epochs: int) -> None:
    data = choose(corpus(tmp_path / "a.jsonl", 150, "new"), seed=0, max_bytes=2000)
    replay = Replay(corpus(tmp_path / "b.jsonl", 20, "old"), share)
    rows = make_rows(data, encode, Layout(64, epochs=epochs), replay)
    new, old = bytes_of(rows, "data"), bytes_of(rows, "replay")
    assert new + old == 2000 * epochs
    assert abs(old - share * 2000 * epochs) <= epochs
    assert rows.counts["data_bytes"] == new
    assert rows.counts.get("replay_bytes", 0) == old
    assert rows.counts["rows"] == len(rows.rows)
    tokens = sum(len(row) for row in rows.rows)
    assert rows.counts["data_tokens"] + rows.counts.get("replay_tokens", 0) == tokens
    assert max(map(len, rows.rows)) <= 64


def test_a_schedule_of_replay(tmp_path: Path) -> None:
    data = choose(corpus(tmp_path / "a.jsonl", 900, "new"), seed=0, max_bytes=20_000)
    replay = Replay(corpus(tmp_path / "b.jsonl", 900, "old"), 0.4, [(0.5, 1.0), (1.0, 0.0)])
    rows = make_rows(data, encode, Layout(64), replay)
    old = np.array([row.part == "replay" for row in rows.rows])
    half = len(old) // 2
    assert bytes_of(rows, "replay") == 4000
    assert abs(old[:half].mean() - 0.4) < 0.03
    assert old[half + 2 :].mean() < 0.02


def test_seeds_and_epochs(tmp_path: Path) -> None:
    documents = corpus(tmp_path / "a.jsonl", 40, "new")

    def tokens(seed: int, epochs: int = 1) -> list[int]:
        rows = make_rows(choose(documents, seed=seed), encode, Layout(64, epochs=epochs, seed=seed))
        return [token for row in rows.rows for token in row.tokens.tolist()]

    one, two = tokens(0), tokens(0, 2)
    assert one == tokens(0)
    assert one != tokens(1)
    assert two[: len(one) - 400] == one[: len(one) - 400], "the first epoch is that of a single one"
    assert sorted(two) == sorted(one * 2)
    assert two[len(one) :] != one, "the second has an order of its own"


def test_an_order_is_asked_per_epoch(tmp_path: Path) -> None:
    documents = corpus(tmp_path / "a.jsonl", 40, "new")
    seeds = []

    def short_first(chosen: Chosen, seed: int) -> Chosen:
        seeds.append(seed)
        return chosen.ordered(curriculum(chosen.sizes))

    layout = Layout(256, packing=False, epochs=2, order=short_first)
    lengths = [len(row) for row in make_rows(choose(documents, seed=0), encode, layout).rows]
    assert lengths == sorted(lengths[:40]) * 2
    assert len(set(seeds)) == 2
