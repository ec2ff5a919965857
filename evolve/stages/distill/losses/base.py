"""What a loss is: declared parameters and one pure function that gives a number for each token.

A loss says how far the student is from the teacher at one token, and nothing else. Which tokens count, the
shift of the labels, padded vocabularies, the denominator, weights and the temperature are the business of
:mod:`evolve.stages.distill.objective`, the same for every loss.

Loss modules do not import torch at the top, so that names, parameters and ranges can be listed without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.param import Param


@dataclass(frozen=True)
class Tokens:
    """The predictions of n tokens, as a loss over the vocabulary sees them.

    Attributes:
        log_q: (n, V), float32 or float64; the student's log-probabilities at the loss's temperature.
        labels: int64, (n,); the tokens that came.
        student: The student's log-probabilities over what the teacher gave: ``log_q`` itself, or k tokens and
            the rest of them in one bucket. None without a teacher.
        teacher: The teacher's log-probabilities over the same, no gradient.
    """

    log_q: Tensor
    labels: Tensor
    student: Tensor | None = None
    teacher: Tensor | None = None

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return the teacher's and the student's log-probabilities over the same entries."""
        if self.teacher is None or self.student is None:
            raise ValueError("this loss compares with a teacher, and none is given")
        return self.teacher, self.student


class Loss(ABC):
    """What all losses declare. A loss is a class that is never instantiated."""

    name: ClassVar[str]
    """As it stands under ``function`` in a config."""
    formula: ClassVar[str]
    """For one token; p is the teacher, q the student."""
    paper: ClassVar[str]
    """Citation or link."""
    reads: ClassVar[Literal["scores", "hidden", "attentions"]]
    """What of the two models it compares."""
    params: ClassVar[tuple[Param, ...]] = ()
    """Parameters of its own, beside ``weight`` and ``temperature``."""
    power: ClassVar[int] = 0
    """The loss is multiplied with the temperature to this power, so that its gradient keeps its size.

    2 for the Kullback-Leibler family and the Jensen-Shannon divergence (Hinton et al. 2015), whose gradients
    fall as 1/T²; 1 for total variation, whose gradient falls as 1/T. 0: there is no temperature."""
    teacher: ClassVar[bool] = True
    """Whether it needs a teacher."""


class TokenLoss(Loss):
    """A loss over the vocabulary."""

    reads = "scores"

    @staticmethod
    @abstractmethod
    def per_token(tokens: Tokens, values: Mapping[str, float]) -> Tensor:
        """Return one number a token, (n,), in the type of ``tokens``; T is in it, the factor T^power not.

        Args:
            tokens: n of them; n is at least 1.
            values: Of all ``params``.
        """


class LayerLoss(Loss):
    """A loss between a layer of the student and one of the teacher."""

    @staticmethod
    @abstractmethod
    def per_token(student: Tensor, teacher: Tensor) -> Tensor:
        """Return one number a token, (n,), float32 or float64.

        Args:
            student: Hidden states (n, width), after the projection to the teacher's width if there is one; or
                attention probabilities (n, heads, keys).
            teacher: The same of the teacher, no gradient.
        """
