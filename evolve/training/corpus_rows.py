"""The whole training data of a stage: a corpus and what is replayed, in one order, within so many bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from evolve.errors import UserError
from evolve.training.documents import choose
from evolve.training.mix import mixed, replayed, stretches
from evolve.training.pack import pack
from evolve.training.rows import Rows
from evolve.training.seeds import seed_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from evolve.training.documents import Chosen, Documents
    from evolve.training.pack import Packed

    Encode = Callable[[Sequence[str]], list[list[int]]]
    """The tokens of some documents, with the marks of their ends."""

_BATCH = 256
_MOST_PASSES = 10_000


@dataclass(frozen=True)
class Replay:
    """Text of an older training that is seen again.

    Attributes:
        documents: The text.
        share: Of the bytes seen, 0 to 0.9.
        scales: ``(until, factor)`` of phases that change the share; empty: it is constant.
    """

    documents: Documents
    share: float
    scales: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Layout:
    """How documents become rows.

    Attributes:
        max_length: Most tokens of a row.
        packing: Whether a row holds several documents.
        epochs: How often the corpus is seen.
        seed: Of the whole training.
        order: The order of an epoch's documents, from them and the epoch's seed; None: as they are drawn.
    """

    max_length: int
    packing: bool = True
    epochs: int = 1
    seed: int = 0
    order: Callable[[Chosen, int], Chosen] | None = field(default=None, compare=False)


def make_rows(data: Chosen, encode: Encode, layout: Layout, replay: Replay | None = None) -> Rows:
    """Return every row of the training, in order.

    The bytes of all rows together are those of ``data`` times the epochs, whatever share of them is replay:
    more replay means less of the corpus. Where the replayed text is too short it is repeated. Rows hold
    tokens and labels, 8 bytes a token; no text stays in memory.

    Args:
        data: The corpus as far as it would be seen without replay.
        encode: The model's tokenizer.
        layout: How documents become rows.
        replay: What is replayed, and how much of it.

    Raises:
        UserError: A text cannot be read.
    """
    total = data.bytes * layout.epochs
    plan = stretches(replay.share, replay.scales) if replay else stretches(0.0)
    share = replayed(plan)
    part = data.first(max(1, round(data.bytes * (1 - share)))) if share else data
    epochs = list(_epochs(part, layout))
    left = total - sum(epoch.bytes for epoch in epochs)
    again = _passes(replay.documents, left, layout.seed) if replay and share else []
    counts: dict[str, int] = {}
    rows = mixed(
        _rows(epochs, encode, layout, "data", counts),
        _rows(again, encode, layout, "replay", counts),
        plan,
        total,
    )
    found = [one.row for one in rows]
    counts["rows"] = len(found)
    counts["epochs"] = layout.epochs
    counts |= {f"left_out_{why}": number for why, number in data.left_out.items() if number}
    if again:
        counts["replay_passes"] = len(again)
    if not any(len(row) > 1 for row in found):
        raise UserError("the corpus has no two tokens in a row: there is nothing to predict")
    return Rows(found, counts)


def _epochs(part: Chosen, layout: Layout) -> Iterator[Chosen]:
    """Yield the documents of each epoch in their order; each epoch has an order of its own."""
    from evolve.statistics.corpus import shuffled

    for epoch in range(layout.epochs):
        seed = seed_of(layout.seed, "epoch", epoch)
        # The first epoch keeps the order in which they were drawn.
        drawn = part if epoch == 0 else part.ordered(shuffled(len(part), seed))
        yield layout.order(drawn, seed) if layout.order else drawn


def _passes(documents: Documents, most: int, seed: int) -> list[Chosen]:
    """Return so many bytes of what is replayed, each pass in an order of its own."""
    found: list[Chosen] = []
    while most > 0:
        found.append(choose(documents, seed=seed_of(seed, "replay", len(found)), max_bytes=most))
        most -= found[-1].bytes
        if len(found) == _MOST_PASSES:
            raise UserError(f"the replayed text has {found[0].bytes} bytes: far too few for its share")
    return found


def _rows(
    parts: Iterable[Chosen], encode: Encode, layout: Layout, part: str, counts: dict[str, int]
) -> Iterator[Packed]:
    """Yield the rows of one part, and count what is in them."""

    def documents() -> Iterator[tuple[list[int], int]]:
        for chosen in parts:
            pairs = zip(chosen.texts(), chosen.sizes.tolist(), strict=True)
            while some := list(islice(pairs, _BATCH)):
                ids = encode([text for text, _ in some])
                for tokens, (_, size) in zip(ids, some, strict=True):
                    for name, value in (("documents", 1), ("tokens", len(tokens)), ("bytes", size)):
                        counts[f"{part}_{name}"] = counts.get(f"{part}_{name}", 0) + value
                    if tokens:
                        yield tokens, size

    yield from pack(documents(), layout.max_length, packing=layout.packing, part=part)
