"""A vocabulary that was extended, seen from the old one: each token as the old tokens that it replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from evolve.weights.token_bytes import TokenBytes
    from evolve.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pieces:
    """Every token of a student as old tokens.

    Attributes:
        of: Student's token to the old tokens that it stands for, at least one each.
        first: int64, (student's vocabulary,); the first of them, -1 for an id that is no token.
        old: Size of the old vocabulary.
    """

    of: Mapping[int, tuple[int, ...]]
    first: Tensor
    old: int

    @classmethod
    def make(cls, of: Mapping[int, Sequence[int]], student: int, old: int) -> Pieces:
        """Build it from the old tokens of each of the student's tokens."""
        import torch

        first = torch.full((student,), -1, dtype=torch.int64)
        for token, pieces in of.items():
            first[token] = pieces[0]
        return cls({token: tuple(pieces) for token, pieces in of.items()}, first, old)

    def beginning_with(self, token: int) -> tuple[int, ...]:
        """Return the student's tokens whose pieces begin with all pieces of ``token``; it is among them."""
        wanted = self.of[token]
        return tuple(other for other, have in self.of.items() if have[: len(wanted)] == wanted)


def pieces_of(student: Tokenizer, teacher: Tokenizer, bytes_of: TokenBytes) -> Pieces:
    """Return the old tokens of every token of an extended vocabulary.

    A token that both have, under any id, is itself. Any other is encoded by the old tokenizer as the text
    that it is; a part of a character, which is no text, is left out of the sums.

    Args:
        student: The extended tokenizer.
        teacher: The old one.
        bytes_of: Of the student's tokens.

    Raises:
        CandidateError: Less than half of the tokens are shared, so that this is no extension.
    """
    shared = student.ids.keys() & teacher.ids.keys()
    if 2 * len(shared) < len(student.ids):
        raise CandidateError(
            "invalid_recipe",
            f"the student has {len(shared)} of its {len(student.ids)} tokens in common with the teacher: "
            "this is no extended vocabulary; compare over spans, or by sorted probabilities",
        )
    found: dict[int, tuple[int, ...]] = {student.ids[token]: (teacher.ids[token],) for token in shared}
    texts = {}
    for number in student.ids.values():
        if number not in found:
            try:
                texts[number] = bytes_of.table[number].decode()
            except UnicodeDecodeError:
                continue
    for number, ids in zip(texts, teacher.encode(list(texts.values())), strict=True):
        if ids:
            found[number] = tuple(ids)
    return Pieces.make(found, student.size, teacher.size)
