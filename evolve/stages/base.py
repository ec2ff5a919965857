"""What a stage is. The pipeline knows stages only through this contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.values import StageBlock
    from evolve.weights.model import Model


class Stage(Protocol):
    """One kind of stage: ``merge``, later ``distill``, ``cpt``, ``vocab``.

    A stage is stateless. Its block declares every key, and which of them may be ranges.
    """

    block: ClassVar[type[StageBlock]]
    """The pydantic schema of the block."""

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Names of the models that the stage reads, in order, without duplicates."""
        ...

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """Check a block (ranges allowed) against the headers of its inputs; reads no weights.

        Returns:
            ``(path inside the block, message with the mend)`` for each problem. Empty: it can be built.
        """
        ...

    @staticmethod
    def headers(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return the shape of the output of a block in which ``check`` found nothing: config and specs.

        Later stages are checked against it. Reads no weights; ``tensor`` of the result raises. Where a range
        decides on the shape (slices that may be off, the size of a vocabulary), it is the largest one.

        Raises:
            CandidateError: There is no such output.
        """
        ...

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int) -> Model:
        """Return the output model of a block with all values fixed.

        Args:
            block: No ranges in it.
            models: Name to input model, at least those of ``inputs(block)``.
            seed: Used where the block has no seed of its own.

        Raises:
            CandidateError: The recipe cannot be built.
        """
        ...
