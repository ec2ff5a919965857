"""What a teacher is: token ids in, the distribution over each next token out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from evolve.config.values import Block
from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from evolve.stages.distill.generation import Completion, Generation
    from evolve.stages.distill.signals import Signals
    from evolve.stages.distill.terms import Term
    from evolve.training.rows import Row
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer

PADDING = 0
"""What stands behind the documents of a row; no document sees it."""


@dataclass(frozen=True)
class Batch:
    """Rows of documents as tensors. Documents never see each other, nor what is behind the last one.

    Attributes:
        tokens: int64, (batch, length).
        lengths: Of each row, the tokens of its documents in order; together at most ``length``, the rest of
            the row is padding.
    """

    tokens: Tensor
    lengths: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length."""
        return int(self.tokens.shape[0]), int(self.tokens.shape[1])

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield row, begin and end of each document, empty ones left out."""
        for row, lengths in enumerate(self.lengths):
            begin = 0
            for length in lengths:
                if length:
                    yield row, begin, begin + length
                begin += length


def batch_of(rows: Sequence[Row], *, width: int | None = None, device: str = "cpu") -> Batch:
    """Return rows as one batch, padded on the right.

    Args:
        rows: At least one.
        width: Length of the batch; None: that of the longest row.
        device: Where the tokens go.

    Raises:
        ValueError: A row is longer than the width.
    """
    import numpy as np
    import torch

    longest = max(len(row) for row in rows)
    if width is not None and width < longest:
        raise ValueError(f"a row of {longest} tokens in a batch of width {width}")
    tokens = np.full((len(rows), width or longest), PADDING, np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row.tokens
    return Batch(torch.from_numpy(tokens).to(device), tuple(row.lengths for row in rows))


def temperature_of(terms: Iterable[Term]) -> float:
    """Return the temperature at which a teacher's k best tokens are wanted: that of the losses that compare.

    Raises:
        CandidateError: They have several; k best tokens are of one.
    """
    found = {term.temperature for term in terms if term.loss.teacher and term.loss.reads == "scores"}
    if len(found) > 1:
        listed = ", ".join(f"{one:g}" for one in sorted(found))
        raise CandidateError(
            "invalid_recipe",
            f"loss_functions: losses at the temperatures {listed}, and a teacher's k best tokens are of one: "
            "give all of them the same, or use kind: hf",
        )
    return found.pop() if found else 1.0


class TeacherBlock(Block):
    """What every teacher's block has; each kind adds its keys, and ``kind`` as a literal."""


@dataclass(frozen=True)
class Opening:
    """What a teacher is opened with.

    Attributes:
        model: The model that ``model`` of the block names; None for a kind that needs none.
        student: The student's tokenizer: its tokens are what the teacher is asked about.
        temperature: That of the losses that compare with the teacher; a teacher that gives its k best tokens
            gives them at this temperature, or says that it cannot.
        device: Where the tensors are wanted, as torch spells it.
        threads: CPU threads of an engine of its own.
        max_length: Most tokens of one document.
    """

    model: Model | None
    student: Tokenizer
    temperature: float = 1.0
    device: str = "cpu"
    threads: int = 1
    max_length: int = 2048


class Teacher(Protocol):
    """One teacher, opened. Use it as a context, or call :meth:`close`.

    ``Class(block, opening)`` opens it. It raises CandidateError where it cannot work, with the mend.
    """

    block: ClassVar[type[TeacherBlock]]
    gives: ClassVar[frozenset[str]]
    """Of ``scores``, ``hidden``, ``attentions``, ``text``: what it can be asked for."""

    def __init__(self, block: Any, opening: Opening) -> None: ...

    def signals(self, batch: Batch, *, hidden: bool = False, attentions: bool = False) -> Signals:
        """Return what the teacher says of a batch, without a gradient, on the device of the opening.

        Place t of a document holds the distribution of its token t + 1. Places behind the documents hold
        anything.

        Raises:
            CandidateError: Something is asked for that this kind does not give, or it broke.
        """
        ...

    def complete(
        self, prompts: Sequence[Sequence[int]], settings: Generation, *, seed: int
    ) -> list[Completion]:
        """Return what the teacher writes behind each prompt. See :func:`...generation.complete`."""
        ...

    def close(self) -> None:
        """Give memory and processes back. Safe to call twice."""
        ...
