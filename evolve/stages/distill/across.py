"""The loss of a batch where student and teacher have different tokenizers.

:func:`~evolve.stages.distill.objective.distillation_loss` compares the two at the same tokens. Here they meet
at the boundaries of spans (:mod:`evolve.stages.distill.alignment`), and what is compared there is one of

``spans``
    whether the text goes on with this span: its tokens' probabilities multiplied, on each side, against all
    else.
``sorted``
    the probabilities in descending order, whatever tokens they belong to (universal logit distillation,
    Boizard et al. 2024, arXiv:2402.12030). Half of its loss is total variation, so only ``tvd`` is taken.
    Where a side has several tokens in a span, its last distribution is multiplied with the probability of the
    tokens before (as the "bayesian" merge of TRL's GOLD): the chance to go that way and then to each token.
``pieces``
    for a student whose vocabulary was extended: its probabilities summed by the first old token of each
    token, against the teacher's over old tokens; and where one token replaces several, how surely the rest
    follows the first, against all else.

Every loss over the vocabulary may be used on these, and everything is divided by the same number of items:
the student's tokens that count in the whole optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from evolve.stages.distill.losses.base import TokenLoss, Tokens
from evolve.stages.distill.objective import Losses, distillation_loss
from evolve.stages.distill.signals import Signals, TopK
from evolve.tensors.chunked import chunk_rows
from evolve.tensors.divergence import log_probabilities, wide
from evolve.tensors.groups import event_buckets, grouped_log_sum, sorted_pair
from evolve.tensors.logits import Head, Logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from evolve.stages.distill.alignment import Aligned, Side
    from evolve.stages.distill.pieces import Pieces
    from evolve.stages.distill.terms import Term

Way: TypeAlias = Literal["spans", "sorted", "pieces"]


@dataclass(frozen=True)
class Meeting:
    """What of two models with different tokenizers is compared.

    Attributes:
        way: See the text of the module.
        vocabularies: Number of real tokens of the student and of the teacher.
        pieces: For ``pieces``: the student's tokens as old ones.
    """

    way: Way
    vocabularies: tuple[int, int]
    pieces: Pieces | None = None


def across_loss(
    terms: Sequence[Term],
    student: Signals,
    teacher: Signals,
    labels: Tensor,
    aligned: Aligned,
    *,
    meeting: Meeting,
    num_items: Tensor | int,
    chunk: int | None = None,
) -> Losses:
    """Return the weighted loss of a batch and each of its terms; see the text of the module.

    Args:
        terms: Losses over the vocabulary. One that needs no teacher (cross-entropy) is that of
            ``distillation_loss``, over all tokens that count.
        student: Of the student's batch.
        teacher: Of the teacher's batch, whole distributions.
        labels: Of the student's batch.
        aligned: The spans (:func:`~evolve.stages.distill.alignment.translate`), on the signals' device.
        meeting: What is compared.
        num_items: The student's tokens that count in the whole optimiser step.
        chunk: Places whose logits are worked on at a time; None: 16 MiB of them.

    Raises:
        ValueError: The signals or the terms do not fit.
    """
    import torch

    chosen = [index for index, term in enumerate(terms) if term.loss.teacher]
    _check([terms[index] for index in chosen], meeting)
    ours, theirs = _whole(student, "student"), _whole(teacher, "teacher")
    total = sum(term.weight for term in terms)
    shares = [term.weight / total for term in terms]
    items = torch.as_tensor(num_items, device=labels.device).clamp(min=1)
    compared = [terms[index] for index in chosen]
    # A sum over nothing: without a span the gradient is 0, not absent.
    sums: Tensor = wide(ours.tensors[0].new_zeros(len(chosen)) + ours.tensors[0][:0].sum())
    if chosen and len(aligned):
        size = chunk or chunk_rows(max(meeting.vocabularies))
        for part in _chunks(aligned, size):
            sums = sums + _of_chunk(compared, ours, theirs, part, meeting)
    factors = sums.new_tensor([term.factor for term in compared])
    values = dict(zip(chosen, sums * factors / items, strict=True))
    for index, term in enumerate(terms):
        if index not in values:
            alone = distillation_loss(
                [term],
                student,
                None,
                labels,
                num_items=num_items,
                vocabulary=meeting.vocabularies[0],
                chunk=chunk,
            )
            values[index] = alone.total
    found = [values[index] for index in range(len(terms))]
    whole = torch.stack([share * value for share, value in zip(shares, found, strict=True)]).sum()
    return Losses(whole, torch.stack([value.detach() for value in found]))


def _check(terms: Sequence[Term], meeting: Meeting) -> None:
    way, pieces = meeting.way, meeting.pieces
    for term in terms:
        if not issubclass(term.loss, TokenLoss):
            raise ValueError(f"{term.loss.name}: layers of models with different tokens cannot be compared")
        if way == "sorted" and term.loss.name != "tvd":
            raise ValueError(f"{term.loss.name} of sorted probabilities means nothing: use tvd, or spans")
    if way == "pieces":
        if pieces is None:
            raise ValueError("pieces: say which old tokens each of the student's tokens stands for")
        if (len(pieces.first), pieces.old) != meeting.vocabularies:
            raise ValueError(
                f"pieces of {len(pieces.first)} and {pieces.old} tokens, vocabularies of "
                f"{meeting.vocabularies}"
            )


def _whole(signals: Signals, side: str) -> Logits | Head:
    if signals.scores is None or isinstance(signals.scores, TopK):
        raise ValueError(
            f"the {side}'s whole distribution is needed across tokenizers, not its k best tokens"
        )
    return signals.scores


class _Chunk:
    """Some spans: the places of each side, and which span each belongs to."""

    def __init__(self, aligned: Aligned, start: int, stop: int) -> None:
        self.student = _part(aligned.student, start, stop)
        self.teacher = _part(aligned.teacher, start, stop)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.student, self.teacher


def _part(side: Side, start: int, stop: int) -> Side:
    offsets = side.offsets[start : stop + 1]
    begin, end = int(offsets[0]), int(offsets[-1])
    return type(side)(side.rows[begin:end], side.tokens[begin:end], offsets - offsets[0])


def _chunks(aligned: Aligned, size: int) -> Iterator[_Chunk]:
    """Yield whole spans, as many as have ``size`` places on the longer side, at least one."""
    offsets = [side.offsets.tolist() for side in aligned]
    start = 0
    for stop in range(1, len(aligned) + 1):
        longest = 0 if stop == len(aligned) else max(side[stop + 1] - side[start] for side in offsets)
        if stop == len(aligned) or longest > size:
            yield _Chunk(aligned, start, stop)
            start = stop


def _of_chunk(
    terms: Sequence[Term], student: Logits | Head, teacher: Logits | Head, part: _Chunk, meeting: Meeting
) -> Tensor:
    """Return the sum of each term over the spans of a chunk; logits are made again for the gradient."""
    import torch
    from torch.utils.checkpoint import checkpoint

    with torch.no_grad():
        theirs = teacher.finish(teacher.raw(part.teacher.rows, meeting.vocabularies[1]))

    def sums(*tensors: Tensor) -> Tensor:
        logits = _logits(student, tensors, part.student.rows, meeting.vocabularies[0])
        found = []
        for term in terms:
            log_q, log_p = (log_probabilities(one, term.temperature) for one in (logits, theirs))
            assert issubclass(term.loss, TokenLoss)
            pairs = _compared(log_q, log_p.to(log_q.dtype), part, meeting)
            found.append(
                torch.stack([term.loss.per_token(tokens, term.values).sum() for tokens in pairs]).sum()
            )
        return torch.stack(found)

    answer: Tensor = checkpoint(sums, *student.tensors, use_reentrant=False)
    return answer


def _logits(source: Logits | Head, tensors: Sequence[Tensor], rows: Tensor, vocabulary: int) -> Tensor:
    """Return the logits of some places with a gradient, float32 or float64."""
    if isinstance(source, Logits):
        return wide(tensors[0].flatten(0, 1)[rows, :vocabulary])
    hidden = wide(tensors[0].flatten(0, 1)[rows])
    raw = hidden @ tensors[1][:vocabulary].to(hidden.dtype).T
    if len(tensors) > 2:
        raw = raw + tensors[2][:vocabulary].to(hidden.dtype)
    return source.finish(raw)


def _compared(log_q: Tensor, log_p: Tensor, part: _Chunk, meeting: Meeting) -> Iterator[Tokens]:
    """Yield what a loss is to compare: the student's and the teacher's log-probabilities of like entries."""
    ours, theirs = part.sides
    if meeting.way == "spans":
        student, teacher = (event_buckets(_chained(*one)) for one in ((log_q, ours), (log_p, theirs)))
        yield Tokens(student, ours.tokens, student, teacher)
    elif meeting.way == "sorted":
        scaled = []
        for log, side in ((log_q, ours), (log_p, theirs)):
            last = side.offsets[1:] - 1
            scaled.append(log[last] + (_chained(log, side) - _picked(log, side)[last])[:, None])
        teacher, student = sorted_pair(scaled[1], scaled[0])
        # Twice total variation is the loss of the paper.
        yield Tokens(student, ours.tokens, student, teacher)
    else:
        assert meeting.pieces is not None
        yield from _by_pieces(log_q, log_p, part, meeting.pieces)


def _by_pieces(log_q: Tensor, log_p: Tensor, part: _Chunk, pieces: Pieces) -> Iterator[Tokens]:
    import torch

    ours, theirs = part.sides
    starts, stops = ours.offsets[:-1], ours.offsets[1:]
    first = grouped_log_sum(log_q[starts], pieces.first.to(log_q.device), pieces.old)
    opening = theirs.tokens[theirs.offsets[:-1]]
    yield Tokens(first, opening, first, log_p[theirs.offsets[:-1]])
    # One token of the student in place of several: how surely the others follow the first.
    longer = theirs.offsets[1:] - theirs.offsets[:-1] > 1
    chosen = (longer & (stops - starts == 1)).nonzero().squeeze(-1)
    if len(chosen) == 0:
        return
    after = (_chained(log_p, theirs) - _picked(log_p, theirs)[theirs.offsets[:-1]])[chosen]
    with_it = _beginning(log_q[starts[chosen]], ours.tokens[starts[chosen]].tolist(), pieces)
    of_first = first[chosen, opening[chosen]]
    student, teacher = event_buckets(with_it - of_first), event_buckets(after)
    labels = torch.zeros(len(chosen), dtype=torch.int64, device=log_q.device)
    yield Tokens(student, labels, student, teacher)


def _beginning(log_q: Tensor, tokens: Sequence[int], pieces: Pieces) -> Tensor:
    """Return for each row the log-probability of all tokens whose pieces begin with those of its token."""
    import torch

    sets = {token: pieces.beginning_with(token) for token in set(tokens)}
    width = max(map(len, sets.values()))
    ids = torch.tensor([[*sets[token], *[-1] * (width - len(sets[token]))] for token in tokens])
    ids = ids.to(log_q.device)
    picked = log_q.gather(1, ids.clamp(min=0))
    return torch.where(ids >= 0, picked, float("-inf")).logsumexp(dim=-1)


def _picked(log: Tensor, side: Side) -> Tensor:
    """Return the log-probability of each token that came, (m,)."""
    return log.gather(1, side.tokens[:, None]).squeeze(1)


def _chained(log: Tensor, side: Side) -> Tensor:
    """Return the log-probability of each span, (n,): that of its tokens one after the other."""
    import torch

    count = len(side.offsets) - 1
    owner = torch.repeat_interleave(
        torch.arange(count, device=log.device), side.offsets[1:] - side.offsets[:-1]
    )
    return log.new_zeros(count).index_add(0, owner, _picked(log, side))
