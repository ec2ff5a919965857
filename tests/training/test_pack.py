from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.training.pack import OPEN_ROWS, Packed, pack
from evolve.training.rows import IGNORED

DOCUMENTS = st.lists(st.integers(1, 40), max_size=40)


def numbered(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Documents whose tokens say which document and which place they are."""
    return [([1000 * index + place for place in range(n)], 3 * n) for index, n in enumerate(lengths)]


def brute_force(lengths: list[int], most: int, packing: bool) -> list[list[list[int]]]:
    """The rows as lists of documents, by the rule alone."""
    rows: list[list[list[int]]] = []
    closed = 0
    for tokens, _ in numbered(lengths):
        while tokens:
            piece, tokens = tokens[:most], tokens[most:]
            best = None
            for index in range(closed, len(rows) if packing else 0):
                room = most - sum(map(len, rows[index]))
                if room >= len(piece) and (best is None or room < most - sum(map(len, rows[best]))):
                    best = index
            if best is None:
                rows.append([piece])
            else:
                rows[best].append(piece)
            while closed < len(rows) and (
                sum(map(len, rows[closed])) == most or len(rows) - closed > (OPEN_ROWS if packing else 0)
            ):
                closed += 1
    return rows


def split(one: Packed) -> list[list[int]]:
    tokens = one.row.tokens.tolist()
    found = []
    for length in one.row.lengths:
        found.append(tokens[:length])
        tokens = tokens[length:]
    assert not tokens
    return found


@given(DOCUMENTS, st.integers(2, 16), st.booleans())
def test_against_brute_force(lengths: list[int], most: int, packing: bool) -> None:
    found = [split(one) for one in pack(numbered(lengths), most, packing=packing)]
    assert found == brute_force(lengths, most, packing)


@given(DOCUMENTS, st.integers(2, 16), st.booleans())
def test_every_token_once_and_in_order(lengths: list[int], most: int, packing: bool) -> None:
    packed = list(pack(numbered(lengths), most, packing=packing, part="replay"))
    seen: dict[int, list[int]] = {}
    for one in packed:
        row = one.row
        assert 1 <= len(row) <= most
        assert sum(row.lengths) == len(row) == len(row.labels)
        assert row.part == "replay"
        assert packing or len(row.lengths) == 1
        assert row.tokens.dtype == row.labels.dtype == "int32"
        start = 0
        for length in row.lengths:
            assert row.labels[start] == IGNORED
            assert (
                row.labels[start + 1 : start + length].tolist()
                == row.tokens[start + 1 : start + length].tolist()
            )
            start += length
    for one in packed:
        for piece in split(one):
            seen.setdefault(piece[0] // 1000, []).append(piece)
    # A document's pieces may lie in later rows before its last one; sorted they are the document.
    for index, (tokens, _) in enumerate(numbered(lengths)):
        pieces = sorted(seen.pop(index), key=lambda piece: piece[0])
        assert [token for piece in pieces for token in piece] == tokens
    assert not seen
    assert sum(one.bytes for one in packed) == pytest.approx(3 * sum(lengths))


def test_short_documents_fill_rows() -> None:
    packed = list(pack(numbered([5, 3, 6, 2, 8, 4]), 8))
    assert [one.row.lengths for one in packed] == [(5, 3), (6, 2), (8,), (4,)]
