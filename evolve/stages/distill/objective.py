"""The loss of a batch: the terms of a config over the tokens that count.

Every term is a sum over the predicted completion tokens of the batch, divided by the number of such tokens in
the whole optimiser step. So the losses of micro-batches add up to the loss of the batch, whatever their
lengths and paddings are; a mean of means would not. The terms are then averaged with their weights.

Where several processes average their gradients (DDP, FSDP), each must multiply its loss with their number, or
be given the number of tokens of all of them divided by it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from evolve.stages.distill.layers import layer_pairs, projected
from evolve.stages.distill.losses.base import LayerLoss, TokenLoss, Tokens
from evolve.stages.distill.signals import Places, Signals, TopK, places
from evolve.tensors.buckets import student_buckets, teacher_buckets
from evolve.tensors.chunked import chunked_sums
from evolve.tensors.divergence import log_probabilities, wide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from evolve.stages.distill.layers import Pair
    from evolve.stages.distill.terms import Term
    from evolve.tensors.logits import Head, Logits


class Losses(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: Scalar; ``sum(w L) / sum(w)``. The gradient flows from here.
        terms: (terms,); each L without its weight, in the order of the terms and without a gradient.
    """

    total: Tensor
    terms: Tensor


def distillation_loss(
    terms: Sequence[Term],
    student: Signals,
    teacher: Signals | None,
    labels: Tensor,
    *,
    num_items: Tensor | int,
    vocabulary: int | None = None,
    projections: Mapping[Pair, Tensor] | None = None,
    chunk: int | None = None,
) -> Losses:
    """Return the weighted loss of a batch and each of its terms.

    The gradient flows into the student and the projections, never into the teacher. ``backward`` runs once.

    Args:
        terms: At least one, of weights above 0 (:func:`~evolve.stages.distill.terms.make_terms`).
        student: Logits, or hidden states with a head; what else the terms read.
        teacher: The same of the teacher, over the same tokens; None where no term reads one.
        labels: int64, (batch, length), at their tokens; -100 where a token does not count.
        num_items: Number of tokens that count in the whole optimiser step
            (:func:`~evolve.stages.distill.signals.count_items`, summed). Less than 1 counts as 1.
        vocabulary: Number of real tokens: ``max(len(tokenizer), largest id + 1)``. What is behind is padding,
            cut off both models before the softmax. None: neither model is padded.
        projections: For pairs of layers of different widths, (teacher's width, student's width).
        chunk: Tokens whose logits are worked on at a time; None: 16 MiB of them. Only time and memory
            depend on it.

    Raises:
        ValueError: The signals do not fit each other or the terms.
    """
    import torch

    if not terms or not all(term.weight > 0 for term in terms):
        raise ValueError("there must be a term, and every weight above 0")
    where = places(labels)
    weights = torch.tensor([term.weight for term in terms], dtype=torch.float64)
    shares = (weights / weights.sum()).tolist()
    items = torch.as_tensor(num_items, device=labels.device).clamp(min=1)
    found: dict[int, Tensor] = {}
    totals: list[Tensor] = []
    scored = [index for index, term in enumerate(terms) if issubclass(term.loss, TokenLoss)]
    if scored:
        chosen = [terms[index] for index in scored]
        scores = _Scores(student, teacher, labels, where, vocabulary, chosen)
        total, sums = scores.sums([shares[index] for index in scored], items, chunk)
        totals.append(total)
        found |= dict(zip(scored, sums, strict=True))
    for index, term in enumerate(terms):
        if index not in found:
            value = _between_layers(term, student, teacher, where, projections or {}) / items
            totals.append(shares[index] * value)
            found[index] = value.detach()
    whole = torch.stack([value.to(totals[0].dtype) for value in totals]).sum()
    return Losses(whole, torch.stack([found[index].to(whole.dtype) for index in range(len(terms))]))


class _Scores:
    """The terms over the vocabulary: all in one pass, so that logits are made once."""

    def __init__(
        self,
        student: Signals,
        teacher: Signals | None,
        labels: Tensor,
        where: Places,
        vocabulary: int | None,
        terms: Sequence[Term],
    ) -> None:
        needed = any(term.loss.teacher for term in terms)
        theirs = teacher.scores if needed and teacher is not None else None
        if needed and theirs is None:
            raise ValueError(
                "a loss over the vocabulary compares with a teacher: give its logits, head or top k"
            )
        if student.scores is None or isinstance(student.scores, TopK):
            raise ValueError(
                "a loss over the vocabulary needs the student's logits, or hidden states and head"
            )
        for side, scores in (("student", student.scores), ("teacher", theirs)):
            if scores is not None and scores.shape != tuple(labels.shape):
                raise ValueError(
                    f"the {side}'s scores are for {scores.shape} tokens, labels {tuple(labels.shape)}"
                )
        self._student: Logits | Head = student.scores
        self._teacher = theirs
        self._labels = labels.flatten()
        self._where = where
        self._terms = terms
        # Cross-entropy at T = 1 needs no teacher at T = 1.
        self._compared = {term.temperature for term in terms if term.loss.teacher}
        self._vocabulary = _vocabulary(self._student, theirs, vocabulary)
        self._check_tokens()

    def _check_tokens(self) -> None:
        if len(self._where.rows) == 0:
            return
        smallest, largest = (int(found) for found in self._where.labels.aminmax())
        if isinstance(self._teacher, TopK):
            given = self._where.of(self._teacher.log_p) > -math.inf
            largest = max(largest, int((self._where.of(self._teacher.tokens) * given).max()))
            for term in self._terms:
                if term.loss.teacher and term.temperature != self._teacher.temperature:
                    raise ValueError(
                        f"{term.loss.name}: the teacher's k best tokens were taken at temperature "
                        f"{self._teacher.temperature:g} and cannot be used at {term.temperature:g}"
                    )
        for token in (smallest, largest):
            if not 0 <= token < self._vocabulary:
                raise ValueError(f"token {token} is outside the vocabulary of {self._vocabulary}")

    def sums(self, shares: Sequence[float], items: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
        """Return the weighted total, and each term by itself; both divided by the items."""
        import torch

        dtype = wide(self._student.tensors[0][:0]).dtype
        device = self._labels.device
        factors = torch.tensor([term.factor for term in self._terms], dtype=dtype, device=device) / items
        weights = factors * torch.tensor(list(shares), dtype=dtype, device=device)
        total, terms = chunked_sums(
            self._student,
            self._where.rows,
            self._measure,
            weights,
            vocabulary=self._vocabulary,
            chunk=chunk,
        )
        return total, terms * factors

    def _measure(self, logits: Tensor, rows: Tensor) -> Tensor:
        import torch

        teacher = self._teacher
        theirs = None if teacher is None or isinstance(teacher, TopK) else self._teacher_logits(teacher, rows)
        at: dict[float, Tokens] = {}
        sums = []
        for term in self._terms:
            if term.temperature not in at:
                log_q = log_probabilities(logits, term.temperature)
                at[term.temperature] = self._tokens(log_q, theirs, rows, term.temperature)
            assert issubclass(term.loss, TokenLoss)
            sums.append(term.loss.per_token(at[term.temperature], term.values).sum())
        return torch.stack(sums)

    def _teacher_logits(self, teacher: Logits | Head, rows: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            return teacher.finish(teacher.raw(rows, self._vocabulary))

    def _tokens(self, log_q: Tensor, theirs: Tensor | None, rows: Tensor, temperature: float) -> Tokens:
        labels = self._labels[rows + 1]
        if temperature not in self._compared:
            return Tokens(log_q, labels)
        if theirs is not None:
            return Tokens(log_q, labels, log_q, log_probabilities(theirs, temperature).to(log_q.dtype))
        assert isinstance(self._teacher, TopK)
        tokens, log_p = (
            part.detach().flatten(0, 1)[rows] for part in (self._teacher.tokens, self._teacher.log_p)
        )
        student = student_buckets(log_q, tokens, log_p > -math.inf)
        return Tokens(log_q, labels, student, teacher_buckets(log_p, self._vocabulary).to(log_q.dtype))


def _vocabulary(student: Logits | Head, teacher: Logits | Head | TopK | None, given: int | None) -> int:
    sizes = [student.vocabulary]
    if teacher is not None and not isinstance(teacher, TopK):
        sizes.append(teacher.vocabulary)
    if given is None:
        if len(set(sizes)) > 1:
            raise ValueError(
                f"the student has {sizes[0]} logits, the teacher {sizes[1]}: say how many are real tokens"
            )
        return sizes[0]
    if not 0 < given <= min(sizes):
        raise ValueError(
            f"a vocabulary of {given} tokens, but models with {' and '.join(map(str, sizes))} logits"
        )
    return given


def _between_layers(
    term: Term, student: Signals, teacher: Signals | None, where: Places, projections: Mapping[Pair, Tensor]
) -> Tensor:
    """Return the sum over tokens of a term's mean over its pairs of layers."""
    import torch

    assert issubclass(term.loss, LayerLoss)
    ours = student.hidden if term.loss.reads == "hidden" else student.attentions
    theirs = teacher and (teacher.hidden if term.loss.reads == "hidden" else teacher.attentions)
    if not ours or not theirs:
        raise ValueError(f"{term.loss.name} needs the {term.loss.reads} of both models")
    # Hidden states begin with the embeddings' output, layer 0; attention maps with layer 1.
    first = 0 if term.loss.reads == "hidden" else 1
    pairs = layer_pairs(term.layers, len(ours) - 1 + first, len(theirs) - 1 + first)
    sums = []
    for pair in pairs:
        if min(pair) < first:
            raise ValueError(f"{term.loss.name}: layer 0, the embeddings, has no {term.loss.reads}")
        one, two = ours[pair[0] - first], theirs[pair[1] - first].detach()
        if first:
            one, two = where.of_maps(one), where.of_maps(two)
        else:
            one, two = where.of(one), where.of(two)
            one = projected(one, pair, two.shape[-1], projections)
        sums.append(term.loss.per_token(one, two).sum())
    return torch.stack(sums).mean()
