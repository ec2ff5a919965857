"""The mean of the pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.vocab.initialisers.base import NewTokens


class SubtokenMean:
    """The plain mean of the rows of the old tokens that the new one is made of."""

    name: ClassVar[str] = "subtoken_mean"
    paper: ClassVar[str] = "arXiv 2402.14714"
    random: ClassVar[bool] = False
    contexts: ClassVar[bool] = False

    @staticmethod
    def rows(table: Tensor, new: NewTokens) -> Tensor:
        """See :class:`~evolve.stages.vocab.initialisers.base.Initialiser`."""
        from evolve.tensors.embeddings import weighted_rows

        return weighted_rows(table, [(rows, np.ones(len(rows))) for rows, _ in new.pieces])
