"""Counting and choosing against brute force: every step counts everything again."""

from __future__ import annotations

import math
import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from evolve.stages.vocab.counts import Count, Counts, Keyness, joined

WORDS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=8,
)


def replaced(word: list[int], pair: tuple[int, int], token: int) -> tuple[list[int], int]:
    """Join a pair by looking for it as text is searched; return the word and how often it was there."""
    text = "".join(map(chr, word))
    found = text.count(chr(pair[0]) + chr(pair[1]))
    return [ord(letter) for letter in text.replace(chr(pair[0]) + chr(pair[1]), chr(token))], found


@given(WORDS, st.integers(0, 10_000))
def test_counts_after_joins_are_those_of_a_fresh_count(
    words: list[tuple[list[int], int, int]], seed: int
) -> None:
    counts = Counts((word, Count(d, g)) for word, d, g in words)
    draw = random.Random(seed)
    now = [list(word) for word, _, _ in words]
    for token in range(10, 14):
        pairs = sorted({pair for word in now for pair in pairwise(word)})
        assert set(counts.pairs()) == set(pairs)
        for pair in pairs:
            often = [replaced(word, pair, token)[1] for word in now]
            expected = [sum(n * w[k] for n, w in zip(often, words, strict=True)) for k in (1, 2)]
            assert list(counts.count(pair)) == expected
        if not pairs:
            return
        pair = draw.choice(pairs)
        changed, _ = counts.join(pair, token)
        after = [replaced(word, pair, token)[0] for word in now]
        assert changed == [index for index, word in enumerate(now) if word != after[index]]
        now = after
        assert [list(counts.word(index)) for index in range(len(counts))] == now


def test_joined_goes_from_left_to_right() -> None:
    assert joined([1, 1, 1, 2], (1, 1), 9) == [9, 1, 2]
    assert joined([], (1, 1), 9) == []


def test_keyness_is_frequency_times_log_ratio_of_rates() -> None:
    assert Keyness(100)(Count(7, 3)) == 7
    assert Keyness(0, 50)(Count(0, 3)) == 0
    assert math.isclose(Keyness(1000, 2000)(Count(30, 4)), 30 * math.log((30 / 1000) / (4.5 / 2000)))
    assert Keyness(1000, 1000)(Count(10, 10)) < 0
