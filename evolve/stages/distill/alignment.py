"""Where two tokenizations of one text meet, so that a teacher of another tokenizer can be asked.

A boundary is a place in the bytes of the text at which a token ends on both sides. Between two boundaries is
a span: some tokens of the student, some of the teacher, for the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evolve.stages.distill.signals import IGNORED
from evolve.stages.distill.teachers.base import Batch
from evolve.weights.token_bytes import NotItself, TokenBytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import Tensor

    from evolve.weights.tokenizer import Tokenizer


_LONGEST = 4
"""Bytes of the longest character in UTF-8, so most tokens that hold a part of one."""


class Span(NamedTuple):
    """The same bytes on both sides: tokens ``start`` to ``stop``, at least one on each."""

    student_start: int
    student_stop: int
    teacher_start: int
    teacher_stop: int


class Side(NamedTuple):
    """The tokens of n spans on one side, one span behind the other.

    Attributes:
        rows: int64, (m,); the place in batch times length that predicts each token.
        tokens: int64, (m,).
        offsets: int64, (n + 1,); where each span begins, and the end.
    """

    rows: Tensor
    tokens: Tensor
    offsets: Tensor

    def to(self, device: torch.device | str) -> Side:
        """Return the same on a device."""
        return Side(self.rows.to(device), self.tokens.to(device), self.offsets.to(device))


class Aligned(NamedTuple):
    """The spans of a batch that count.

    Attributes:
        student: Its tokens.
        teacher: The teacher's tokens, whose rows are places in the teacher's batch.
    """

    student: Side
    teacher: Side

    def __len__(self) -> int:
        return len(self.student.offsets) - 1

    def to(self, device: torch.device | str) -> Aligned:
        """Return the same on a device: that of the models' logits."""
        return Aligned(self.student.to(device), self.teacher.to(device))


def align(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> list[Span]:
    """Return the spans between the boundaries that two tokenizations share, in order.

    Args:
        student_ends: Bytes of the text that end with each token, ascending; the last one is the text's size.
        teacher_ends: The same of the teacher. Tokens without bytes belong to the span before them, at the
            beginning to the first.

    Raises:
        ValueError: The texts have different sizes, so that they cannot be the same.
    """
    if not student_ends and not teacher_ends:
        return []
    if not student_ends or not teacher_ends or student_ends[-1] != teacher_ends[-1]:
        raise ValueError("the two tokenizations are of different texts")
    spans = []
    begins = [0, 0]
    places = [0, 0]
    sides = (student_ends, teacher_ends)
    for end in sorted(set(student_ends) & set(teacher_ends)):
        if end == 0:
            continue
        for side in (0, 1):
            while places[side] < len(sides[side]) and sides[side][places[side]] <= end:
                places[side] += 1
        spans.append(Span(begins[0], places[0], begins[1], places[1]))
        begins = list(places)
    return spans


@dataclass(frozen=True)
class Translator:
    """From the student's tokens to the teacher's.

    Attributes:
        student: Bytes of the student's tokens.
        teacher: Bytes of the teacher's tokens.
        tokenizer: The teacher's.
        ends: The tokens that end a document, the student's and the teacher's; None: documents have no end.
        begin: The teacher's token in front of a document, or None.
    """

    student: TokenBytes
    teacher: TokenBytes
    tokenizer: Tokenizer
    ends: tuple[int, int] | None = None
    begin: int | None = None

    def document(self, tokens: Sequence[int]) -> tuple[list[int], list[Span]]:
        """Return the teacher's tokens of a document, and the spans.

        The token that ends the document is a span of its own on both sides. A document that is cut within a
        character has no span from that character on.

        Raises:
            NotItself: The document is not text (it holds a part of a character), or the teacher's tokenizer
                does not give it back.
        """
        inner = list(tokens)
        ended = self.ends is not None and bool(inner) and inner[-1] == self.ends[0]
        if ended:
            inner.pop()
        inner, raw = self._whole(inner, cut=not ended)
        text = raw.decode()
        ids = self.tokenizer.encode([text])[0] if text else []
        spans = align(self.student.ends(inner, raw), self.teacher.ends(ids, raw)) if text else []
        front = [] if self.begin is None else [self.begin]
        spans = [Span(a, b, c + len(front), d + len(front)) for a, b, c, d in spans]
        theirs = [*front, *ids]
        if ended:
            assert self.ends is not None
            spans.append(Span(len(inner), len(inner) + 1, len(theirs), len(theirs) + 1))
            theirs.append(self.ends[1])
        return theirs, spans

    def _whole(self, tokens: list[int], *, cut: bool) -> tuple[list[int], bytes]:
        """Return the tokens up to the last whole character, and their bytes.

        Args:
            tokens: Of a document.
            cut: Whether it may end within a character.
        """
        for dropped in range(_LONGEST if cut else 1):
            inner = tokens[: len(tokens) - dropped]
            raw = self.student.text(inner)
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                if error.end < len(raw):
                    break
                continue
            if inner or not tokens:
                return inner, raw
        raise NotItself(
            "a document begins within a character, or holds a part of one: cut documents elsewhere"
        )


class Translated(NamedTuple):
    """A batch for the teacher.

    Attributes:
        batch: One document a row.
        aligned: The spans that count.
        left_out: Documents that could not be aligned; they have no span.
        reason: Why the last of them could not; empty: all could.
    """

    batch: Batch
    aligned: Aligned
    left_out: int
    reason: str = ""


def translate(batch: Batch, labels: Tensor, translator: Translator) -> Translated:
    """Return the teacher's batch for a student's, and the spans that count.

    A span counts where all of its tokens on the student's side count, and both sides have a token before it
    that predicts it.

    Args:
        batch: The student's.
        labels: int64, (batch, length), at their tokens; -100 where a token does not count.
        translator: Between the two tokenizers.

    Returns:
        All of it on the CPU. Where no document could be aligned, one token and no span.
    """
    import torch

    tokens, counts = batch.tokens.cpu().numpy(), labels.cpu().numpy() != IGNORED
    documents: list[list[int]] = []
    spans: list[tuple[int, int, Span]] = []
    reason = ""
    left_out = 0
    for row, begin, end in batch.spans():
        try:
            theirs, found = translator.document(tokens[row, begin:end].tolist())
        except NotItself as error:
            reason, left_out = str(error), left_out + 1
            continue
        for span in found:
            inside = counts[row, begin + span.student_start : begin + span.student_stop]
            if span.student_start and span.teacher_start and inside.all():
                spans.append((row * batch.shape[1] + begin, len(documents), span))
        documents.append(theirs)
    if not any(documents):
        documents = [[translator.begin or 0]]
    width = max(map(len, documents))
    padded = np.zeros((len(documents), width), np.int64)
    for place, one in enumerate(documents):
        padded[place, : len(one)] = one
    flat = tokens.reshape(-1)
    student = _side(
        ((first + span.student_start, first + span.student_stop) for first, _, span in spans), flat
    )
    teacher = _side(
        ((place * width + span.teacher_start, place * width + span.teacher_stop) for _, place, span in spans),
        padded.reshape(-1),
    )
    translated = Batch(torch.from_numpy(padded), tuple((len(one),) for one in documents))
    return Translated(translated, Aligned(student, teacher), left_out, reason)


def _side(ranges: Iterable[tuple[int, int]], flat: np.ndarray) -> Side:
    import torch

    places: list[int] = []
    offsets = [0]
    for start, stop in ranges:
        places += range(start, stop)
        offsets.append(len(places))
    where = np.array(places, np.int64)
    return Side(
        torch.from_numpy(where - 1), torch.from_numpy(flat[where].astype(np.int64)), torch.tensor(offsets)
    )
