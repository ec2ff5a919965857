"""Random rows: a control."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.vocab.initialisers.base import NewTokens


class Random:
    """Normal numbers with the mean and the standard deviation that each column has over the old tokens."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "-"
    random: ClassVar[bool] = True
    contexts: ClassVar[bool] = False

    @staticmethod
    def rows(table: Tensor, new: NewTokens) -> Tensor:
        """See :class:`~evolve.stages.vocab.initialisers.base.Initialiser`."""
        from evolve.tensors.embeddings import deviation, mean_row, normal_rows

        noise = normal_rows(new.keys, table.shape[1:].numel()).reshape(len(new.keys), *table.shape[1:])
        return mean_row(table, new.old) + noise * deviation(table, new.old)
