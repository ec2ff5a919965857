"""A teacher that was captured before: its k best tokens, out of a folder that ``evolve capture`` wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from evolve.config.values import DataFile
from evolve.errors import CandidateError
from evolve.stages.distill.teachers.base import TeacherBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.stages.distill.generation import Completion, Generation
    from evolve.stages.distill.signals import Signals
    from evolve.stages.distill.teachers.base import Batch, Opening


class DatasetTeacherBlock(TeacherBlock, DataFile):
    """A captured teacher. ``path`` is the ``capture.json`` in its folder."""

    kind: Literal["dataset"]


class DatasetTeacher:
    """See the text of the module. It needs no weights of the teacher, and no time."""

    block: ClassVar[type[TeacherBlock]] = DatasetTeacherBlock
    gives: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __init__(self, block: DatasetTeacherBlock, opening: Opening) -> None:
        from evolve.stages.distill.captured import Captured, tokenizer_key

        self._captured = Captured(block.path)
        self._device = opening.device
        self._temperature = opening.temperature
        key = self._captured.key
        if tokenizer_key(opening.student) != key.tokenizer:
            raise CandidateError(
                "invalid_recipe",
                f"teacher.path: {block.path} was captured with another tokenizer than the student's: its ids "
                "mean other tokens. Capture with a teacher of the student's tokenizer, use a live teacher "
                "(kind: hf), or leave the student's vocabulary as it is",
            )
        if opening.temperature not in key.temperatures:
            known = ", ".join(f"{one:g}" for one in key.temperatures)
            raise CandidateError(
                "invalid_recipe",
                f"teacher.path: {block.path} was captured at the temperatures {known}, and the losses are at "
                f"{opening.temperature:g}: a tail cannot be tempered; capture with --temperature "
                f"{opening.temperature:g}, or change the losses",
            )
        self._column = key.temperatures.index(opening.temperature)

    def signals(self, batch: Batch, *, hidden: bool = False, attentions: bool = False) -> Signals:
        """Return the k best tokens of every document."""
        import torch

        from evolve.stages.distill.captured import log_p_of
        from evolve.stages.distill.signals import Signals, TopK
        from evolve.stages.distill.top_k import tempered

        if hidden or attentions:
            raise CandidateError(
                "invalid_recipe",
                "a captured teacher has no hidden states and no attention maps: use kind: hf, or leave out "
                "the losses between layers",
            )
        read = batch.tokens.cpu().numpy()
        k = min(self._captured.key.top_k, self._captured.key.vocabulary)
        tokens = torch.zeros((*batch.shape, k), dtype=torch.int64)
        log_p = torch.full((*batch.shape, k), float("-inf"))
        for row, begin, end in batch.spans():
            found = self._captured.find(read[row, begin:end])
            if found is None:
                raise CandidateError("build", self._unknown(read[row, begin:end].tolist()))
            tokens[row, begin:end] = torch.from_numpy(found.best.astype("int64"))
            base = torch.from_numpy(log_p_of(found.log_p))
            odds = torch.from_numpy(found.odds[:, self._column].copy())
            log_p[row, begin:end] = tempered(base, odds, self._temperature)
        return Signals(TopK(tokens.to(self._device), log_p.to(self._device), self._temperature))

    def complete(
        self, prompts: Sequence[Sequence[int]], settings: Generation, *, seed: int
    ) -> list[Completion]:
        """Refuse: nobody is there who could write."""
        raise CandidateError(
            "invalid_recipe", "a captured teacher writes nothing: seq_kd needs kind: hf or vllm"
        )

    def close(self) -> None:
        """Nothing is held but maps of files."""

    def _unknown(self, tokens: list[int]) -> str:
        key = self._captured.key
        return (
            f"{self._captured.path} does not hold a document of {len(tokens)} tokens that begins with "
            f"{tokens[:8]}: train on the data that was captured ({key.data}), with max_length at most "
            f"{key.max_length}, or capture again. Text that the student writes (lmbda above 0) needs a live "
            "teacher"
        )
