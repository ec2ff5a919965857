"""Rows of tables with one entry for each token: embeddings, output heads and their biases.

Row ids are int64 arrays in which -1 stands for "no such row". Sums are float64 and added in the order of the
tables, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Rows: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"

# Rows that are widened to float64 at once.
_ROWS = 1024

_EXACT = {("bfloat16", "float32"), ("float16", "float32")}


def selected(table: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """Return the rows ``rows`` of a table, in this order; zeros where there is none.

    Args:
        table: ``[vocabulary, ...]``, any type.
        rows: ``[n]``.
        dtype: Type of the result; floats are rounded where it is narrower.

    Returns:
        ``[n, ...]``, with its own storage, on the device of the table.

    Raises:
        IndexError: A row is outside of the table.
    """
    _require(rows, len(table))
    out = torch.zeros((len(rows), *table.shape[1:]), dtype=dtype, device=table.device)
    places = np.flatnonzero(rows >= 0)
    if places.size:
        out[torch.from_numpy(places).to(table.device)] = _taken(table, rows[places]).to(dtype)
    return out


def mean_of_owners(tables: Sequence[Tensor], owners: Sequence[Rows]) -> Tensor:
    """Return, for each of n tokens, the mean of the rows that some of the tables have for it.

    Args:
        tables: Each ``[its vocabulary, ...]``, alike in all dimensions but the first. At least one.
        owners: For each table the rows of the n tokens, ``[n]``; -1 where it has none.

    Returns:
        ``[n, ...]``, float64, on the CPU. A single owner's row is given exactly, no owner's is zeros.

    Raises:
        IndexError: A row is outside of its table.
    """
    width = tables[0].shape[1:]
    total = torch.zeros((len(owners[0]), *width), dtype=torch.float64)
    count = np.zeros(len(owners[0]), np.int64)
    for table, rows in zip(tables, owners, strict=True):
        _require(rows, len(table))
        places = np.flatnonzero(rows >= 0)
        if places.size:
            total[torch.from_numpy(places)] += _taken(table, rows[places]).to("cpu", torch.float64)
            count[places] += 1
    divisor = torch.from_numpy(np.maximum(count, 1)).to(torch.float64)
    return total / divisor.reshape(-1, *(1 for _ in width))


def mean_row(table: Tensor, rows: Rows) -> Tensor:
    """Return the mean of some rows of a table.

    A row of an output head that is the mean of the others is never chosen: its logit is the mean of theirs,
    and by Jensen's inequality m such rows beside n take at most m / (n + m) of the probability (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").

    Args:
        table: ``[vocabulary, ...]``.
        rows: ``[n]``, none of them -1. Without any the mean is zero.

    Returns:
        ``[...]``, float64, on the CPU.

    Raises:
        IndexError: A row is outside of the table.
    """
    _require(rows, len(table))
    if rows.size and int(rows.min()) < 0:
        raise IndexError("a mean has no row -1")
    total = np.zeros(tuple(table.shape[1:]), np.float64)
    for start in range(0, rows.size, _ROWS):
        block = _taken(table, rows[start : start + _ROWS]).to("cpu", torch.float64).numpy()
        total += np.add.reduce(block, axis=0)
    return torch.from_numpy(np.asarray(total / max(rows.size, 1)))


def holds_exactly(source: str, target: str) -> bool:
    """Whether every number of type ``source`` is one of type ``target``, both as torch spells them."""
    return source == target or target == "float64" or (source, target) in _EXACT


def _taken(table: Tensor, rows: Rows) -> Tensor:
    return table[torch.from_numpy(rows).to(table.device)]


def _require(rows: Rows, size: int) -> None:
    if rows.size and int(rows.max()) >= size:
        raise IndexError(f"row {int(rows.max())} of a table with {size} rows")
