"""A mean of the old tokens that stand in like contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.vocab.initialisers.base import NewTokens


class NearestContexts:
    """The mean of the 8 old tokens that stand in the likest contexts in the dataset, weighted by likeness.

    After FOCUS (a convex mean of similar old tokens), but the similarity is counted, not trained: see
    :mod:`evolve.stages.vocab.contexts`, which says what it costs. A token that is too rare gets the mean of
    its pieces.
    """

    name: ClassVar[str] = "nearest_contexts"
    paper: ClassVar[str] = "arXiv 2305.14481"
    random: ClassVar[bool] = False
    contexts: ClassVar[bool] = True

    @staticmethod
    def rows(table: Tensor, new: NewTokens) -> Tensor:
        """See :class:`~evolve.stages.vocab.initialisers.base.Initialiser`."""
        from evolve.tensors.embeddings import weighted_rows

        return weighted_rows(table, new.contexts())
