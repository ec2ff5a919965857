"""L2-SP: the squared distance from the start weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.training.regularizers.base import RegularizerBlock
from evolve.training.regularizers.quadratic import Quadratic

if TYPE_CHECKING:
    from evolve.training.regularizers.base import Anchor, Penalty


class L2SpBlock(RegularizerBlock):
    """``1/2 |theta - theta*|^2``: every weight is held alike. Takes 4 bytes a trained parameter."""


class L2Sp:
    """A squared distance is no number of nats, so what its weight means depends on the model."""

    name = "l2sp"
    paper = "Li et al. 2018, Explicit inductive bias for transfer learning, arXiv:1802.01483"
    block: ClassVar[type[RegularizerBlock]] = L2SpBlock
    weights_only = True
    held = 4

    @staticmethod
    def prepare(block: L2SpBlock, anchor: Anchor) -> Penalty:
        """Remember the start weights."""
        return Quadratic(anchor.network)
