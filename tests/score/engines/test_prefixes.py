from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from evolve.score.engines.hf_lm import make_batch, tree_mask
from evolve.score.engines.prefixes import Asked, Row, batches_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 12)),
    min_size=1,
    max_size=20,
)


def asked(sequences: Sequence[tuple[list[int], int]]) -> list[Asked]:
    """Return requests that ask for the last few tokens of each sequence; targets tell them apart."""
    return [
        Asked(tuple(tokens), tuple(range(100 * n, 100 * n + min(count, len(tokens)))))
        for n, (tokens, count) in enumerate(sequences)
    ]


def seen(row: Row, place: int) -> list[int]:
    """Return the tokens that a token may attend to, itself last, by the rule in the module's text."""
    return [row.tokens[key] for key in range(place + 1) if place < row.end[key]]


@given(SEQUENCES, st.booleans())
def test_every_place_sees_what_its_own_sequence_has_before_it(
    sequences: list[tuple[list[int], int]], share: bool
) -> None:
    requests = asked(sequences)
    rows = rows_of(requests, share=share)
    answered = {}
    for row in rows:
        for number, places in row.asked:
            answered[number] = [(seen(row, place), row.depth[place]) for place in places]
        assert row.branches or row.depth == list(range(len(row.tokens)))
    assert sorted(answered) == list(range(len(requests)))
    for number, (read, targets) in enumerate(requests):
        first = len(read) - len(targets)
        assert answered[number] == [(list(read[: place + 1]), place) for place in range(first, len(read))]


@given(SEQUENCES)
def test_sharing_never_computes_more_and_without_it_only_equal_inputs_meet(
    sequences: list[tuple[list[int], int]],
) -> None:
    requests = asked(sequences)
    shared, single = (
        sum(len(row.tokens) for row in rows_of(requests, share=share)) for share in (True, False)
    )
    assert shared <= single <= sum(len(one.read) for one in requests)
    assert not any(row.branches for row in rows_of(requests, share=False))


@given(SEQUENCES, st.integers(1, 4), st.integers(1, 9))
def test_batches_hold_every_row_once_within_their_limits(
    sequences: list[tuple[list[int], int]], size: int, logits: int
) -> None:
    rows = rows_of(asked(sequences), share=True)
    batches = list(batches_of(rows, size=size, logits=logits))
    assert sorted(map(id, rows)) == sorted(id(row) for batch in batches for row in batch)
    for batch in batches:
        assert len(batch) <= size
        assert len({row.branches for row in batch}) == 1
        assert len(batch) == 1 or sum(row.logits for row in batch) <= logits


@given(SEQUENCES)
def test_a_batch_says_the_same_as_its_rows(sequences: list[tuple[list[int], int]]) -> None:
    requests = asked(sequences)
    rows = [row for row in rows_of(requests, share=True) if row.branches]
    if not rows:
        return
    batch = make_batch(rows, requests, "cpu")
    assert batch.end is not None and batch.depth is not None
    mask = tree_mask(batch.end)[:, 0]
    for number, row in enumerate(rows):
        width = len(row.tokens)
        assert batch.tokens[number, :width].tolist() == row.tokens
        assert batch.depth[number, :width].tolist() == row.depth
        for place in range(width):
            keys = mask[number, place].nonzero().flatten().tolist()
            assert [row.tokens[key] for key in keys] == seen(row, place)
    assert mask.any(dim=-1).all(), "a query that sees nothing becomes NaN"
    for where, target, request in zip(
        batch.where.tolist(), batch.targets.tolist(), batch.request.tolist(), strict=True
    ):
        row_number, column = batch.places[:, where].tolist()
        read, targets = requests[request]
        place = len(read) - len(targets) + targets.index(target)
        assert seen(rows[row_number], column) == list(read[: place + 1])


def test_choices_of_an_item_and_items_with_common_examples_share() -> None:
    examples = list(range(1000, 1040))
    items = [[*examples, *range(100 * i, 100 * i + 20)] for i in range(3)]
    requests = [Asked((*item, 7, choice), (choice, 9)) for item in items for choice in range(4)]
    [row] = rows_of(requests, share=True)
    assert len(row.tokens) == 40 + 3 * (20 + 1 + 4)
    assert sum(len(row.tokens) for row in rows_of(requests, share=False)) == 12 * 62
