"""What a selector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from evolve.stages.vocab.draft import Draft


class Selector(Protocol):
    """Chooses new tokens from a text. Stateless and without chance: the same text gives the same tokens.

    How many are wanted has no say, so the first 128 are the first 128 of the 256.
    """

    name: ClassVar[str]
    """Its name in a config."""
    paper: ClassVar[str]
    """Where it is from."""

    @staticmethod
    def select(draft: Draft, most: int) -> None:
        """Join pairs, the most useful first, until nothing useful is left or ``most`` tokens are there."""
        ...
