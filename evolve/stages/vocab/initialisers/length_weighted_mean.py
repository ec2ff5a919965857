"""The mean of the pieces, a long one counting more."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.vocab.initialisers.base import NewTokens


class LengthWeightedMean:
    """The mean of the rows of the old tokens that the new one is made of, each weighted by its bytes."""

    name: ClassVar[str] = "length_weighted_mean"
    paper: ClassVar[str] = "arXiv 2608.03494"
    random: ClassVar[bool] = False
    contexts: ClassVar[bool] = False

    @staticmethod
    def rows(table: Tensor, new: NewTokens) -> Tensor:
        """See :class:`~evolve.stages.vocab.initialisers.base.Initialiser`."""
        from evolve.tensors.embeddings import weighted_rows

        return weighted_rows(table, new.pieces)
