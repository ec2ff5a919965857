"""What a stage is. The pipeline knows stages only through this contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.values import StageBlock
    from evolve.stages.memo import Memo
    from evolve.weights.model import Model


class Stage(Protocol):
    """One kind of stage: ``merge``, later ``distill``, ``cpt``, ``vocab``.

    A stage is stateless. Its block declares every key, and which of them may be ranges.
    """

    block: ClassVar[type[StageBlock]]
    """The pydantic schema of the block."""

    version: ClassVar[int] = 1
    """Of the stage's arithmetic. It is in the identity of a computed output, so that what later stages keep
    of another version is not taken. A stage may leave it out until its arithmetic changes."""

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
    def trains(block: StageBlock) -> bool:
        """Whether ``run`` of a block with all values fixed trains: it takes minutes and a lot of memory.

        Where it does, the inference engine gives its memory back before ``run`` is called, and candidates
        that train are started first. All training happens in ``run``: the tensors of its output are only
        read. A stage that never trains may leave this method out.
        """
        return False

    @staticmethod
    def spreads(block: StageBlock) -> bool:
        """Whether several processes can train it together, each calling ``run`` (``stages/together.py``).

        A stage for which that is so may leave this method out.
        """
        return True

    @staticmethod
    def extra_training_bytes(block: StageBlock, models: Mapping[str, Model]) -> int:
        """Bytes that training takes beside weights, gradients and moments, such as a teacher's, or a start's.

        A stage without any may leave this method out.

        Args:
            block: No ranges in it.
            models: Name to headers, at least those of ``inputs(block)``.
        """
        return 0

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return a model with the config, specs and files that the output will have; no tensor is read.

        Later stages are checked against it; ``tensor`` of the result may raise. Called where ``check`` found
        nothing. Where a range decides on the shape (slices that may be off, the size of a vocabulary), it is
        the largest one.

        Raises:
            CandidateError: There is no such output.
        """
        ...

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Do once what every candidate would do otherwise, and keep it on the disk.

        Args:
            block: One whose ``measured`` names models; ranges allowed, the content of data files filled in.
            models: Name to model, at least those that are measured, with their contents.

        Raises:
            CandidateError: It cannot be done.
        """
        ...

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Return the output model of a block with all values fixed.

        Args:
            block: No ranges in it.
            models: Name to input model, at least those of ``inputs(block)``.
            seed: Used where the block has no seed of its own.
            memo: Keeps what later candidates over the same models need again; None: nothing is kept.

        Raises:
            CandidateError: The recipe cannot be built.
        """
        ...
