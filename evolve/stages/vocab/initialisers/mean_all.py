"""The mean of all old tokens: a control."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.vocab.initialisers.base import NewTokens


class MeanAll:
    """The mean of the rows of all old tokens, the same for every new one.

    In a head such rows take at most m / (n + m) of the probability, m new tokens beside n old ones.
    """

    name: ClassVar[str] = "mean_all"
    paper: ClassVar[str] = "Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models"
    random: ClassVar[bool] = False
    contexts: ClassVar[bool] = False

    @staticmethod
    def rows(table: Tensor, new: NewTokens) -> Tensor:
        """See :class:`~evolve.stages.vocab.initialisers.base.Initialiser`."""
        from evolve.tensors.embeddings import mean_row

        return mean_row(table, new.old).expand(len(new.tokens), *table.shape[1:]).clone()
