"""What an initialiser is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from evolve.tensors.embeddings import Column, Rows

Mixture: TypeAlias = "tuple[Rows, Column]"
"""Rows of old tokens, with a weight for each."""


@dataclass(frozen=True)
class NewTokens:
    """The tokens that get rows.

    Attributes:
        tokens: As they are in the vocabulary.
        pieces: For each the old tokens that it is made of, in order, with the bytes of text of each.
        old: Rows of the tokens that were there before; padding is not among them.
        contexts: Returns for each the old tokens that stand in like contexts; costs a pass over the dataset.
        keys: For each a number that depends on the seed, the token and the table alone.
    """

    tokens: Sequence[str]
    pieces: Sequence[Mixture]
    old: Rows
    contexts: Callable[[], Sequence[Mixture]]
    keys: Sequence[int]


class Initialiser(Protocol):
    """Makes rows for new tokens. A row depends on its own token alone, not on how many others there are."""

    name: ClassVar[str]
    """Its name in a config."""
    paper: ClassVar[str]
    """Where it is from."""
    random: ClassVar[bool]
    """Whether the seed has a say."""
    contexts: ClassVar[bool]
    """Whether it needs the dataset."""

    @staticmethod
    def rows(table: Tensor, new: NewTokens) -> Tensor:
        """Return a row for each new token.

        Args:
            table: ``[vocabulary, width]`` of an embedding or head, ``[vocabulary]`` of a bias; as it was
                before, any type.
            new: The tokens.

        Returns:
            ``[n, ...]``, float64, on the CPU.
        """
        ...
