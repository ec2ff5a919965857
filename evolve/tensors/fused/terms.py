"""What is added up: one term per model, and the rule by which entries of its task vector stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 1 << 32  # one random word decides in steps of 1/2**32
RANKED_STEPS = 1 << 24  # a float32 holds every one of these


@dataclass(frozen=True)
class Everything:
    """All entries stay."""


@dataclass(frozen=True)
class Magnitude:
    """Entries stay by their magnitude, compared as the integer of its float32 bits.

    Attributes:
        threshold: Larger magnitudes stay. -1: all.
        ties: Of those that equal the threshold, the first this many stay.
    """

    threshold: int
    ties: int


@dataclass(frozen=True)
class Chance:
    """Each entry stays with one probability, and is divided by it (DARE).

    Attributes:
        seed: From 0 to 2**64 - 1: the key of the generator.
        limit: The entry stays if its random word is below; from 1 to 2**32.
    """

    seed: int
    limit: int


@dataclass(frozen=True)
class RankedChance:
    """Each entry stays with a probability that is linear in its rank in its row (DELLA).

    The probability is ``low + step * rank``, in float32, kept within 0 and 2**24 and rounded to a whole
    number: an entry stays if the upper 24 bits of its random word are below.

    Attributes:
        seed: As in :class:`Chance`.
        ranks: uint16 or int32, contiguous, the shape of the tensor.
        low: Of rank 0, in units of 2**-24.
        step: From one rank to the next, in the same units.
        rescale: Divide what stays by its probability.
    """

    seed: int
    ranks: Tensor
    low: float
    step: float
    rescale: bool


Keep: TypeAlias = Everything | Magnitude | Chance | RankedChance


@dataclass(frozen=True)
class Term:
    """One model's share of the sum.

    Attributes:
        tensor: The model's tensor; of float32, bfloat16 or float16.
        weight: Factor of its task vector.
        keep: Which entries stay.
        scale: Factor of what stays, before the weight.
    """

    tensor: Tensor
    weight: float
    keep: Keep = Everything()
    scale: float = 1.0


def chance(density: float, seed: int, *, rescale: bool) -> tuple[Keep, float]:
    """Return the rule by which each entry stays with probability ``density``, and the factor of what stays.

    Args:
        density: Cut off at 0 and 1; exact to 2**-32.
        seed: From 0 to 2**64 - 1.
        rescale: Divide by the probability, which keeps the expectation (DARE; arXiv:2311.03099).
    """
    limit = round(min(max(density, 0.0), 1.0) * STEPS)
    if limit == STEPS:
        return Everything(), 1.0
    if limit == 0:
        return Everything(), 0.0
    return Chance(seed, limit), STEPS / limit if rescale else 1.0
