"""Which row of which model each row of the result's vocabulary comes from. Numbers only, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.tensors.embeddings import Rows

NO_ROW = -1


class Choice(NamedTuple):
    """What the config says of one token.

    Attributes:
        model: The model whose row is taken, or None for zeros.
        row: The row.
        force: Whether models that have the token get it too.
    """

    model: str | None
    row: int
    force: bool


@dataclass(frozen=True)
class Alignment:
    """Where the rows of every model's aligned tables come from.

    Attributes:
        size: Rows of the result.
        own: For each model the row of its own that each row of the result takes, ``[size]``; -1: none.
        filled: Rows of the result that some model has no row for, and some other model or the config gives.
        owners: For each model the row that it gives for each of ``filled``; the mean over those with one is
            taken, zeros where there is none.
        tokens: Rows of the result that stand for tokens that some model has, or the config gives.
        padding: All others. They get the mean of ``tokens``.
    """

    size: int
    own: Mapping[str, Rows]
    filled: Rows
    owners: Mapping[str, Rows]
    tokens: Rows
    padding: Rows

    def whole(self, model: str, rows: int) -> bool:
        """Whether the tables of a model, which have ``rows`` rows, are aligned as they are."""
        own = self.own[model]
        return rows == self.size and bool((own == np.arange(self.size)).all())


def align(
    ids: Mapping[str, int],
    known: Mapping[str, Mapping[str, int]],
    rows: Mapping[str, int],
    *,
    base: str | None,
    choices: Mapping[str, Choice],
    multiple: int = 1,
) -> Alignment:
    """Align the vocabularies of several models with that of the result.

    A model that lacks a token of the result gets the base's row for it; where the base has none, the mean
    of the rows of all models that have one (which may be a single one). This is mergekit's rule.

    Args:
        ids: The result's tokens with their ids. Of two tokens with one id the later counts first.
        known: For each model its tokens with their ids.
        rows: For each model how many rows its tables have. A token beyond them has no row.
        base: The model whose rows go first, if it has any.
        choices: Tokens whose rows the config chooses.
        multiple: The number of rows is rounded up to a multiple of this.
    """
    count = 1 + max(ids.values(), default=-1)
    size = -(-count // multiple) * multiple
    places = np.fromiter(ids.values(), np.int64, len(ids))
    own: dict[str, Rows] = {}
    for model, theirs in known.items():
        found = np.fromiter((theirs.get(token, NO_ROW) for token in ids), np.int64, len(ids))
        held = (found >= 0) & (found < rows[model])
        own[model] = np.full(size, NO_ROW, np.int64)
        own[model][places[held]] = found[held]
    owners = _owners(own, base)
    given = np.zeros(size, bool)
    forced = np.zeros(size, bool)
    for token, choice in choices.items():
        place = ids[token]
        given[place], forced[place] = True, choice.force
        for model, theirs_rows in owners.items():
            theirs_rows[place] = choice.row if model == choice.model else NO_ROW
    has_token = np.zeros(size, bool)
    has_token[places] = given[places] | np.logical_or.reduce([mine[places] >= 0 for mine in own.values()])
    for mine in own.values():
        mine[forced] = NO_ROW
    lacking = np.logical_or.reduce([mine < 0 for mine in own.values()])
    filled = np.flatnonzero(lacking & has_token)
    return Alignment(
        size=size,
        own=own,
        filled=filled,
        owners={model: found[filled] for model, found in owners.items()},
        tokens=np.flatnonzero(has_token),
        padding=np.flatnonzero(~has_token),
    )


def _owners(own: Mapping[str, Rows], base: str | None) -> dict[str, Rows]:
    """Return the rows that count for a model without one: the base's where it has one, else everybody's."""
    owners = {model: mine.copy() for model, mine in own.items()}
    if base is not None:
        held = own[base] >= 0
        for model, found in owners.items():
            if model != base:
                found[held] = NO_ROW
    return owners
