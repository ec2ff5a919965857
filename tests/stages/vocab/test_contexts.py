"""Likeness of contexts on a text whose answer is known."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from evolve.stages.vocab.contexts import nearest
from evolve.weights.bpe import bpe_of
from tests.stages.vocab.kit import tokenizer

if TYPE_CHECKING:
    from pathlib import Path

LEFT, RIGHT = list("abcdefg"), list("ABCDEFG")


def sentences(seed: int = 0) -> list[str]:
    """Return texts in which "xy" stands where "p" does, among small letters, and "q" among capitals."""
    draw = random.Random(seed)
    found = []
    for _ in range(300):
        for middle, around in (("xy", LEFT), ("p", LEFT), ("q", RIGHT)):
            found.append("".join([*draw.choices(around, k=5), middle, *draw.choices(around, k=5)]))
    return found


def test_the_nearest_is_the_one_that_stands_in_the_same_places(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    ids = {token: number for number, token in enumerate(bpe.tokens)}
    own = [[ids["x"], ids["y"]], [ids["q"], ids["p"]]]
    found, rare = nearest(own, sentences(), bpe)
    assert rare is None, "a pair that the text does not have"
    assert found is not None
    names, likeness = [bpe.tokens[number] for number in found[0]], list(found[1])
    assert likeness == sorted(likeness, reverse=True) and 0 < likeness[-1] <= likeness[0] <= 1
    assert "p" in names and "q" not in names


def test_a_token_is_likest_to_itself(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    ids = {token: number for number, token in enumerate(bpe.tokens)}
    (found,) = nearest([[ids["q"]]], sentences(), bpe)
    assert found is not None and found[0][0] == ids["q"] and found[1][0] == 1


def test_no_text_no_answer(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    assert nearest([[5, 6]], [], bpe) == [None]
    assert nearest([[5, 6]], ["", "a"], bpe) == [None]
