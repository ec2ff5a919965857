"""Chooses the new tokens once for a tokenizer, a text and settings, and keeps them on the disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import UserError, some
from evolve.registry import SELECTORS
from evolve.stages.vocab.block import MOST_TOKENS
from evolve.stages.vocab.counts import Count, Keyness
from evolve.stages.vocab.draft import Draft, Merge
from evolve.types import content_hash
from evolve.weights.content import file_content
from evolve.weights.files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.config.values import DataFile
    from evolve.weights.bpe import Bpe

logger = logging.getLogger(__name__)

_VERSION = 1
"""Changes with what is chosen: files of another version are not used."""


@dataclass(frozen=True)
class Source:
    """A file that tokens are chosen from.

    Attributes:
        path: The file.
        content: ``sha256:...`` of what it must hold.
    """

    path: str
    content: str

    @classmethod
    def of(cls, file: DataFile | None) -> Source | None:
        """Return a block's file; the content is that of now where the block does not say.

        Raises:
            ModelError: It cannot be read.
        """
        if file is None:
            return None
        return cls(file.path, file.content or file_content(Path(file.path).expanduser()))

    def checked(self) -> Path:
        """Return the path after a look at the content.

        Raises:
            UserError: It holds something else.
        """
        path = Path(self.path).expanduser()
        if (content := file_content(path)) != self.content:
            raise UserError(
                f"{self.path} holds {content}, not {self.content}: it changed, or another file is there; "
                "bring back the one that was meant"
            )
        return path


@dataclass(frozen=True)
class Request:
    """What decides which tokens are chosen, beside the tokenizer.

    Attributes:
        dataset: The domain text.
        terms: The user's own terms.
        contrast: The general text.
        method: Name of the selector.
        min_frequency: Least occurrences in the dataset.
    """

    dataset: Source | None
    terms: Source | None
    contrast: Source | None
    method: str
    min_frequency: int

    @property
    def key(self) -> dict[str, Any]:
        """Plain data: not where files are."""
        files = {name: getattr(self, name) for name in ("dataset", "terms", "contrast")}
        contents = {name: None if source is None else source.content for name, source in files.items()}
        # Without a dataset nothing is selected.
        how = {"method": self.method, "min_frequency": self.min_frequency} if self.dataset else {}
        return {**contents, **how}


@dataclass(frozen=True)
class Chosen:
    """New tokens in the order in which they are added.

    Attributes:
        merges: All that the text gives, however many are wanted.
        from_terms: How many of them, from the first on, are of the user's terms.
        missed: Terms that cannot be made of the tokenizer's tokens.
        size: Bytes of the dataset.
        tokens: Tokens of the dataset without new ones.
    """

    merges: tuple[Merge, ...]
    from_terms: int
    missed: tuple[str, ...]
    size: int
    tokens: int

    def saved(self, count: int) -> int:
        """Return how many tokens the first ``count`` new ones save on the dataset."""
        return sum(merge.domain for merge in self.merges[:count])


def choose(bpe: Bpe, request: Request) -> Chosen:
    """Return the tokens that a request gives for a tokenizer, chosen now where nobody has yet.

    Raises:
        UserError: A file cannot be read, or holds something else than it should.
    """
    tokenizer = hashlib.sha256(bpe.backend.to_str().encode()).hexdigest()
    key = content_hash({"version": _VERSION, "tokenizer": tokenizer, **request.key})
    return _remembered(_Keyed(key, bpe, request))


class _Keyed:
    """A question that equals another one of the same key."""

    def __init__(self, key: str, bpe: Bpe, request: Request) -> None:
        self.key, self.bpe, self.request = key, bpe, request

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and self.key == other.key


@functools.lru_cache(maxsize=8)
def _remembered(question: _Keyed) -> Chosen:
    with contextlib.suppress(OSError, RuntimeError):
        if (found := _read(_place(question.key))) is not None:
            return found
    try:
        chosen = _choose(question.bpe, question.request)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    # The file only saves time: without a writable cache it is chosen again. RuntimeError: no home folder.
    with contextlib.suppress(OSError, RuntimeError):
        _write(_place(question.key), chosen)
    return chosen


def _choose(bpe: Bpe, request: Request) -> Chosen:
    from evolve.stages.vocab import terms as own
    from evolve.stages.vocab.text import Text, merged, read
    from evolve.statistics.corpus import texts

    began = time.perf_counter()
    domain = read(texts(request.dataset.checked()), bpe) if request.dataset else Text()
    general = read(texts(request.contrast.checked()), bpe) if request.contrast else None
    terms = own.cut(own.read_terms(request.terms.checked()), bpe) if request.terms else []
    words = list(merged(domain, general))
    places = []
    for term in terms:
        places.append(len(words))
        words += [(word, Count(0, 0)) for word in term.words]
    keyness = Keyness(domain.size, general.size if general else 0)
    draft = Draft(bpe, words, keyness, floor=request.min_frequency)
    missed = own.add(draft, terms, places)
    from_terms = len(draft.merges)
    if request.dataset is not None:
        SELECTORS.load(request.method).select(draft, max(MOST_TOKENS, from_terms))
    if missed:
        logger.warning("%d terms cannot be made of the tokenizer's tokens: %s", len(missed), some(missed))
    logger.info(
        "%d new tokens found in %.1f MB in %.1f s",
        len(draft.merges),
        domain.size / 1e6,
        time.perf_counter() - began,
    )
    return Chosen(tuple(draft.merges), from_terms, tuple(missed), domain.size, domain.tokens)


def _place(key: str) -> Path:
    return cache_folder("vocab") / f"{key}.json"


def _read(path: Path) -> Chosen | None:
    """Return what a file holds, or None where there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes())
        merges = tuple(Merge(str(left), str(right), int(d), int(g)) for left, right, d, g in data["merges"])
        counts = {name: int(data[name]) for name in ("from_terms", "size", "tokens")}
        return Chosen(merges, missed=tuple(map(str, data["missed"])), **counts)
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and is made again: %r", path, error)
        return None


def _write(path: Path, chosen: Chosen) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with partial.open("x", encoding="utf-8") as file:
            json.dump(asdict(chosen), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def documents(source: Source) -> Iterator[str]:
    """Yield the documents of a file.

    Raises:
        UserError: It cannot be read, or holds something else than it should.
    """
    from evolve.statistics.corpus import texts

    try:
        yield from texts(source.checked())
    except OSError as error:
        raise UserError(f"{source.path} cannot be read: {error.strerror}") from error
