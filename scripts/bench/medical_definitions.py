"""Definitions of medical terms out of the Human Phenotype Ontology, split by terms for training and tests.

No text of the training part names a term that is kept for tests, neither its name nor an exact synonym, and
none is the definition of one in other words than its own name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_SHORT = 5
"""A synonym without a word of so many letters is an abbreviation, which other texts use in other meanings."""


class Term(NamedTuple):
    """A term of the ontology.

    Attributes:
        name: As it is asked for.
        definition: One text; empty where there is none.
        synonyms: The exact ones.
    """

    name: str
    definition: str
    synonyms: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.name}. {self.definition}"


class Parts(NamedTuple):
    """Texts of terms.

    Attributes:
        train: Of terms that may be seen, without those that name one that may not.
        held_out: Of terms that are kept for tests.
        left_out: How many texts of the first kind name a term of the second.
    """

    train: list[str]
    held_out: list[str]
    left_out: int


def terms_of(ontology: str) -> list[Term]:
    """Return the terms of an ontology in OBO that are not obsolete."""
    found = []
    for block in ontology.partition("[Typedef]")[0].split("[Term]")[1:]:
        if "is_obsolete: true" in block:
            continue
        name = re.findall(r"^name: (.+)", block, re.MULTILINE)[0].strip()
        definition = re.findall(rf"^def: {_QUOTED}", block, re.MULTILINE)
        synonyms = re.findall(rf"^synonym: {_QUOTED} EXACT", block, re.MULTILINE)
        found.append(Term(name, _plain(definition[0]) if definition else "", tuple(map(_plain, synonyms))))
    return found


def split(terms: Iterable[Term], held_out: Callable[[str], bool]) -> Parts:
    """Return the texts of both parts, in the order of the ontology.

    Args:
        terms: All of them.
        held_out: Whether a term of this name is kept for tests.
    """
    every = list(terms)
    kept = [term for term in every if held_out(term.name)]
    names = {_words(name) for term in kept for name in (term.name, *filter(_known, term.synonyms))}
    definitions = {_words(term.definition) for term in kept}
    longest = max(map(len, names), default=0)

    def tells(term: Term) -> bool:
        words = _words(term.text)
        spans = (words[at : at + size] for at in range(len(words)) for size in range(1, longest + 1))
        return _words(term.definition) in definitions or any(span in names for span in spans)

    seen = [term for term in every if term.definition and not held_out(term.name)]
    train = [term.text for term in seen if not tells(term)]
    return Parts(train, [term.text for term in kept if term.definition], len(seen) - len(train))


def _known(synonym: str) -> bool:
    return any(len(word) >= _SHORT for word in _words(synonym))


def _words(text: str) -> tuple[str, ...]:
    """Return the words in lower case, plurals as their singular."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    return tuple(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found)


def _plain(quoted: str) -> str:
    return " ".join(re.sub(r"\\(.)", lambda one: " " if one[1] in "nt" else one[1], quoted).split())
