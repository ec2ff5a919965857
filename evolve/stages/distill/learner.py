"""What a distillation trains for: the losses between the student and a teacher, a step at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import CandidateError
from evolve.stages.distill.across import across_loss
from evolve.stages.distill.alignment import translate
from evolve.stages.distill.data import prompts_of
from evolve.stages.distill.forward import forward
from evolve.stages.distill.generation import row_of, student_rollouts
from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.teachers.base import batch_of
from evolve.training.rows import IGNORED, WRITTEN
from evolve.training.seeds import seed_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evolve.stages.distill.across import Meeting
    from evolve.stages.distill.alignment import Translator
    from evolve.stages.distill.forward import HeadRule
    from evolve.stages.distill.generation import Generation
    from evolve.stages.distill.layers import Pair
    from evolve.stages.distill.objective import Losses
    from evolve.stages.distill.teachers.base import Teacher
    from evolve.stages.distill.terms import Term
    from evolve.training.rows import Row


SPANS = "spans"
"""Number of a step: spans that two tokenizations share and that count."""


@dataclass(frozen=True)
class Writing:
    """Who writes the text of a step.

    Attributes:
        lmbda: Share of the steps whose text the student writes (GKD, Agarwal et al. 2024, arXiv:2306.13649);
            without effect where no loss reads a teacher.
        seq_kd: Whether the teacher writes the rest (Kim and Rush 2016, arXiv:1606.07947).
        settings: How it is sampled.
        room: Most tokens of a row.
        seed: Of the draws.
    """

    lmbda: float
    seq_kd: bool
    settings: Generation
    room: int
    seed: int


@dataclass(frozen=True)
class Crossing:
    """A teacher with another tokenizer.

    Attributes:
        translator: From the student's tokens to the teacher's.
        meeting: What is compared.
    """

    translator: Translator
    meeting: Meeting


@dataclass
class Learner:
    """An objective of the trainer.

    Attributes:
        terms: The losses, of weights above 0.
        teacher: None where no loss reads one.
        rule: How the student makes its logits.
        vocabulary: Number of real tokens.
        writing: Who writes.
        projections: Between hidden states of different widths.
        crossing: Where the teacher has another tokenizer; None: it has the student's.
        reasons: Weight of tokens that are reasons for an answer.
        reason: Why the last document that could not be aligned with the teacher's tokens could not.
    """

    terms: Sequence[Term]
    teacher: Teacher | None
    rule: HeadRule | None
    vocabulary: int
    writing: Writing
    projections: Mapping[Pair, Tensor] = field(default_factory=dict)
    crossing: Crossing | None = None
    reasons: float = 1.0
    reason: str = ""

    def prepare(self, network: Any, rows: Sequence[Row], *, step: int) -> Sequence[Row]:
        """Return the rows as they stand, or with completions that the student or the teacher writes."""
        writing = self.writing
        drawn = seed_of(writing.seed, "writes", step) / 2**63
        if drawn < writing.lmbda and any(term.loss.teacher for term in self.terms):
            prompts = [prompt[: writing.room - 1] for prompt in prompts_of(rows)]
            return student_rollouts(
                network,
                prompts,
                writing.settings,
                seed=seed_of(writing.seed, "step", step),
                room=writing.room,
            )
        if writing.seq_kd:
            if self.teacher is None:
                raise CandidateError("invalid_recipe", "seq_kd: there is no teacher that writes")
            prompts = [prompt[: writing.room - 1] for prompt in prompts_of(rows)]
            # One seed for all steps: what the teacher writes for a prompt is the same in every epoch.
            found = self.teacher.complete(prompts, writing.settings, seed=writing.seed)
            return [
                _cut(row_of(prompt, one), writing.room) for prompt, one in zip(prompts, found, strict=True)
            ]
        return rows

    def loss(
        self, network: Any, rows: Sequence[Row], *, num_items: int
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of a part of a step, and each of its terms.

        On text that the student has just written, losses that read no teacher are left out. It was drawn from
        the student's distribution, so the expected gradient of its log-likelihood is 0: they would add noise,
        and at a low temperature they would sharpen the student on itself.
        """
        import torch

        batch = batch_of(rows)
        marks = np.full(batch.shape, IGNORED, np.int64)
        for place, row in enumerate(rows):
            marks[place, : len(row)] = row.labels
        own = all(row.part == WRITTEN for row in rows)
        terms = [term for term in self.terms if term.loss.teacher] if own else self.terms
        reads = {term.loss.reads for term in terms if term.loss.teacher}
        wanted = {"hidden": "hidden" in reads, "attentions": "attentions" in reads}
        student = forward(network, batch, rule=self.rule, **wanted)
        device = network.get_input_embeddings().weight.device
        asked = self.teacher if reads else None
        crossing = self.crossing if asked is not None else None
        teacher = asked.signals(batch, **wanted) if asked is not None and crossing is None else None
        total: Tensor | None = None
        numbers: dict[str, float] = {}
        for name, weight, counted in self._split(rows, marks):
            labels = torch.from_numpy(counted).to(device)
            if crossing is not None and asked is not None:
                found = translate(batch, labels, crossing.translator)
                if teacher is None:
                    # Its text is the same for all parts.
                    teacher = asked.signals(found.batch)
                self.reason = found.reason or self.reason
                numbers["not_aligned"] = float(found.left_out)
                numbers[SPANS] = numbers.get(SPANS, 0.0) + len(found.aligned)
                losses = across_loss(
                    terms,
                    student,
                    teacher,
                    labels,
                    found.aligned.to(device),
                    meeting=crossing.meeting,
                    num_items=num_items,
                )
            else:
                losses = distillation_loss(
                    terms,
                    student,
                    teacher,
                    labels,
                    num_items=num_items,
                    vocabulary=self.vocabulary,
                    projections=self.projections,
                )
            total = weight * losses.total if total is None else total + weight * losses.total
            numbers |= {f"{name}{key}": value for key, value in _named(terms, losses).items()}
        assert total is not None
        return total, numbers

    def _split(
        self, rows: Sequence[Row], marks: NDArray[np.int64]
    ) -> list[tuple[str, float, NDArray[np.int64]]]:
        """Return labels with their weight: all, or those of answers and those of reasons apart."""
        if self.reasons == 1.0 or all(row.reasons is None for row in rows):
            return [("", 1.0, marks)]
        why = np.zeros(marks.shape, np.bool_)
        for place, row in enumerate(rows):
            if row.reasons is not None:
                why[place, : len(row)] = row.reasons
        apart = [("", 1.0, np.where(why, IGNORED, marks))]
        if self.reasons:
            apart.append(("reasons_", self.reasons, np.where(why, marks, IGNORED)))
        return apart


def _named(terms: Sequence[Term], losses: Losses) -> dict[str, float]:
    return {term.loss.name: value for term, value in zip(terms, losses.terms.tolist(), strict=True)}


def _cut(row: Row, room: int) -> Row:
    from dataclasses import replace

    if len(row) <= room:
        return row
    return replace(row, tokens=row.tokens[:room], labels=row.labels[:room], lengths=(room,))
