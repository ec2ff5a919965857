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
Column: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"

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


def weighted_rows(table: Tensor, parts: Sequence[tuple[Rows, Column]]) -> Tensor:
    """Return weighted means of rows of a table, one for each of n tokens.

    Args:
        table: ``[vocabulary, ...]``.
        parts: For each token its rows ``[k]`` and their weights ``[k]``, which are at least 0; a token whose
            weights are all 0, or that has no rows, gets zeros.

    Returns:
        ``[n, ...]``, float64, on the CPU.

    Raises:
        IndexError: A row is outside of the table.
    """
    out = torch.zeros((len(parts), *table.shape[1:]), dtype=torch.float64)
    for place, (rows, weights) in enumerate(parts):
        _require(rows, len(table))
        whole = float(np.add.reduce(weights))
        if rows.size and whole > 0:
            shares = torch.from_numpy(weights / whole).reshape(-1, *(1 for _ in table.shape[1:]))
            out[place] = (_taken(table, rows).to("cpu", torch.float64) * shares).sum(0)
    return out


def deviation(table: Tensor, rows: Rows) -> Tensor:
    """Return the standard deviation over some rows of a table, for each column.

    Args:
        table: ``[vocabulary, ...]``.
        rows: ``[n]``, none of them -1; of fewer than two rows the deviation is zero.

    Returns:
        ``[...]``, float64, on the CPU; divided by n.
    """
    mean = mean_row(table, rows).numpy()
    total = np.zeros_like(mean)
    for start in range(0, rows.size, _ROWS):
        block = _taken(table, rows[start : start + _ROWS]).to("cpu", torch.float64).numpy()
        total += np.add.reduce(np.square(block - mean), axis=0)
    return torch.from_numpy(np.asarray(np.sqrt(total / max(rows.size, 1))))


def mean_length(table: Tensor, rows: Rows) -> float:
    """Return the mean Euclidean length of some rows of a table ``[vocabulary, width]``; 0 without any."""
    total = 0.0
    for start in range(0, rows.size, _ROWS):
        block = _taken(table, rows[start : start + _ROWS]).to("cpu", torch.float64)
        total += float(torch.linalg.vector_norm(block, dim=1).sum())
    return total / max(rows.size, 1)


def of_length(rows: Tensor, length: float) -> Tensor:
    """Return rows ``[n, width]`` scaled to one Euclidean length; zeros stay zeros."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(lengths > 0, rows * (length / lengths.clamp_min(1e-300)), rows)


def normal_rows(keys: Sequence[int], width: int) -> Tensor:
    """Return rows of standard normal numbers, each a function of its key and the width alone.

    Args:
        keys: One for each of n rows, from 0 to 2**64 - 1.
        width: Numbers in a row.

    Returns:
        ``[n, width]``, float64: by Box and Muller 1958, "A note on the generation of random normal deviates",
        of the words of :mod:`evolve.tensors.random`.
    """
    from evolve.tensors.random import words

    out = np.empty((len(keys), width))
    for place, key in enumerate(keys):
        drawn = (words(key, 0, 2 * width).astype(np.float64) + 0.5) / 2**32
        radius = np.sqrt(-2 * np.log(drawn[:width]))
        out[place] = radius * np.cos(2 * np.pi * drawn[width:])
    return torch.from_numpy(out)


def holds_exactly(source: str, target: str) -> bool:
    """Whether every number of type ``source`` is one of type ``target``, both as torch spells them."""
    return source == target or target == "float64" or (source, target) in _EXACT


def _taken(table: Tensor, rows: Rows) -> Tensor:
    return table[torch.from_numpy(rows).to(table.device)]


def _require(rows: Rows, size: int) -> None:
    if rows.size and int(rows.max()) >= size:
        raise IndexError(f"row {int(rows.max())} of a table with {size} rows")
