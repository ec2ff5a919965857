"""Rows that are nearly the same: candidates by MinHash (Broder 1997), then the Jaccard similarity itself.

The rows' runs of three words are compared. MinHash only proposes pairs, so no row is left out that is less
similar than the threshold; a pair that it misses stays (with 128 permutations and the lower threshold that
is proposed at, fewer than one in a hundred at the threshold).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from evolve.errors import MissingDependency
from evolve.generate.checks import fixed_number
from evolve.generate.filters.base import Filtered, whole_text, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evolve.generate.blocks import FiltersBlock
    from evolve.generate.filters.base import Context
    from evolve.generate.styles.base import Draft

_RUN = 3
_PERMUTATIONS = 128
_BELOW = 0.15
"""So much below the threshold pairs are proposed."""


class NearDuplicate:
    """See the text of the module."""

    keys: ClassVar[tuple[str, ...]] = ("near_duplicate",)

    @staticmethod
    def apply(block: FiltersBlock, drafts: Sequence[Draft], context: Context) -> Filtered:
        """Keep a row unless one that is kept already is as similar as the threshold."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise MissingDependency("filters: {near_duplicate: ...}", "evolve[api]") from error
        threshold = fixed_number(block.near_duplicate)
        index = MinHashLSH(threshold=max(threshold - _BELOW, 0.02), num_perm=_PERMUTATIONS)
        runs: dict[int, NDArray[np.uint64]] = {}
        kept = []
        for number, draft in enumerate(drafts):
            own = _runs(whole_text(draft))
            sketch = MinHash(_PERMUTATIONS, seed=1, hashfunc=_low_bits)
            sketch.update_batch(own.tolist())
            if any(_similarity(own, runs[other]) >= threshold for other in index.query(sketch)):
                continue
            index.insert(number, sketch)
            runs[number] = own
            kept.append(draft)
        return Filtered(kept, {"near_duplicate": len(drafts) - len(kept)})


def _low_bits(value: int) -> int:
    return value & 0xFFFFFFFF


def _runs(text: str) -> NDArray[np.uint64]:
    """Return hashes of a text's runs of words, sorted, each once."""
    found = words(text)
    runs = {tuple(found[at : at + _RUN]) for at in range(max(len(found) - _RUN + 1, 1))}
    hashes = [hashlib.blake2b("\0".join(run).encode(), digest_size=8).digest() for run in runs]
    values: NDArray[Any] = np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)
    return np.unique(values)


def _similarity(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    shared = np.intersect1d(one, other, assume_unique=True).size
    return float(shared / (one.size + other.size - shared))
