"""A user's own terms, as the words that a tokenizer makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evolve.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.stages.vocab.draft import Draft
    from evolve.weights.bpe import Bpe


class Term(NamedTuple):
    """A term.

    Attributes:
        text: As the user wrote it.
        words: Its words as tokens of the tokenizer, behind a space and at the beginning of a text; each of
            them becomes a token.
    """

    text: str
    words: tuple[tuple[int, ...], ...]


def read_terms(path: Path) -> list[str]:
    """Return the lines of a file, without white space around them, empty ones and doubles.

    Raises:
        UserError: It is no UTF-8 text.
        OSError: It cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, a term a line: {error}") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def cut(terms: list[str], bpe: Bpe) -> list[Term]:
    """Cut terms as the tokenizer does, those of several words into them."""
    return [Term(term, tuple(dict.fromkeys(_words(term, bpe)))) for term in terms]


def _words(term: str, bpe: Bpe) -> list[tuple[int, ...]]:
    if bpe.kind == "words":
        # What the tokenizer puts in front of a text is not known, so it is given the words themselves.
        begins = [f"{bpe.space}{word}" for word in term.split()]
        return [tuple(bpe.pieces(word)) for word in (*begins, *term.split())]
    found: list[tuple[int, ...]] = []
    for text in (f" {term}", term):
        encoding = bpe.backend.encode(text, add_special_tokens=False)
        words: dict[int, list[int]] = {}
        for number, word in zip(encoding.ids, encoding.word_ids, strict=True):
            words.setdefault(-1 if word is None else word, []).append(number)
        found += [tuple(word) for word in words.values()]
    return found


def add(draft: Draft, terms: list[Term], places: list[int]) -> list[str]:
    """Make every word of the terms one token.

    Args:
        draft: Has the words among its own.
        terms: In the order in which they are added.
        places: Where in the draft the first word of each term is; its others follow.

    Returns:
        Those that are not reached, such as one with a character that the tokenizer lacks.
    """
    missed = []
    for term, first in zip(terms, places, strict=True):
        reached = [draft.chain(first + number)[2] for number in range(len(term.words))]
        if not all(reached):
            missed.append(term.text)
    return missed
