"""EWC: the distance from the start weights, each weighted by what the model's predictions lose by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from evolve.config.values import DataFile, SearchInt
from evolve.errors import CandidateError, UserError
from evolve.training.regularizers.base import RegularizerBlock
from evolve.training.regularizers.quadratic import Quadratic

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.training.regularizers.base import Anchor, Penalty


class EwcBlock(RegularizerBlock, DataFile):
    """``1/2 sum F (theta - theta*)^2`` with F the diagonal Fisher information per token, in nats.

    Takes 8 bytes a trained parameter. The Fisher information is gathered once per model and text, and kept.
    """

    samples: SearchInt = 256
    """Sequences of the text that the Fisher information is gathered on, each as long as a row."""


class Ewc:
    """See the text of the module.

    F is the mean over tokens of the squared gradient of log p, with labels drawn from the model (the true
    Fisher information), in float32, at the start weights. So the penalty is, to second order and as far as a
    diagonal can tell, the divergence KL(start || model) of a token: a weight means the same on any model.
    """

    name = "ewc"
    paper = "Kirkpatrick et al. 2017, Overcoming catastrophic forgetting, arXiv:1612.00796"
    block: ClassVar[type[RegularizerBlock]] = EwcBlock
    weights_only = True
    held = 8

    @staticmethod
    def prepare(block: EwcBlock, anchor: Anchor) -> Penalty:
        """Gather the Fisher information, or find it, and remember the start weights."""
        return Quadratic(anchor.network, fisher_of(block, anchor))


def fisher_of(block: EwcBlock, anchor: Anchor) -> dict[str, Tensor]:
    """Return the Fisher information of each parameter of the network that has one, float32.

    Raises:
        CandidateError: It cannot be gathered.
    """
    from evolve.statistics.corpus import Corpus
    from evolve.statistics.gather import statistics_of

    if block.content is None:
        raise CandidateError("invalid_recipe", "ewc: the text has no content hash")
    most = int(cast("int", block.samples)) * anchor.max_length
    corpus = Corpus(block.path, block.content, most, anchor.max_length, anchor.seed)
    try:
        found = statistics_of(anchor.model, "fisher", corpus)
    except UserError as error:
        raise CandidateError("build", f"ewc: {error}") from error
    known = ((own, found.get(name)) for name, own in anchor.names.items())
    return {own: one[0] for own, one in known if one is not None}
