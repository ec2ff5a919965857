"""What a block makes of a model's tokenizer: files with more tokens, and what each of them is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError, UserError
from evolve.stages.vocab.block import VocabBlock, bounds, names
from evolve.stages.vocab.choice import Chosen, Request, Source, choose, documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.stages.vocab.initialisers.base import Mixture
    from evolve.tensors.embeddings import Rows
    from evolve.weights.bpe import Bpe
    from evolve.weights.files import Files
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens.

    Attributes:
        files: The side files that hold it.
        tokens: The new tokens, in the order of their ids.
        first: Id of the first new token.
        old: Ids of the tokens that were there before, ascending.
        pieces: For each new token the old ones that it is made of, with the bytes of text of each.
        chosen: What was chosen, all of it.
        bpe: The tokenizer before.
    """

    files: Files
    tokens: tuple[str, ...]
    first: int
    old: Rows
    pieces: tuple[Mixture, ...]
    chosen: Chosen
    bpe: Bpe


@dataclass(frozen=True)
class Settings:
    """A block's request with one number of new tokens.

    Attributes:
        request: What is chosen from.
        count: New tokens.
    """

    request: Request
    count: int


def settings(block: VocabBlock, *, widest: bool = False, method: str | None = None) -> Settings:
    """Return what a block asks for.

    Args:
        block: Its values are fixed, unless ``widest``.
        widest: Of ranges take what gives the largest vocabulary, with the fewest tokens to choose from.
        method: Of those that may choose the tokens; absent: the first. How many there are is the same.

    Raises:
        ModelError: A file cannot be read.
    """
    end = 1 if widest else 0
    request = Request(
        Source.of(block.dataset),
        Source.of(block.terms),
        Source.of(block.selection.contrast) if block.dataset is not None else None,
        method or names(block.selection.method)[0],
        int(bounds(block.selection.min_frequency)[end]),
    )
    return Settings(request, int(bounds(block.num_new_tokens)[end]))


def extension_of(model: Model, wanted: Settings) -> Extension:
    """Return the extension of a model's tokenizer. Asked again for the same files, the same object.

    Raises:
        UserError: The tokenizer cannot be extended, or the text gives too few tokens.
    """
    files = model.files
    config = json.dumps(dict(model.config), sort_keys=True, default=str)
    return _extension(files, _stamp(files), config, wanted)


def chosen_of(model: Model, request: Request) -> Chosen:
    """Return all tokens that a request gives for a model.

    Raises:
        UserError: The tokenizer cannot be extended.
    """
    config = json.dumps(dict(model.config), sort_keys=True, default=str)
    return choose(_loaded(model.files, _stamp(model.files), config)[1], request)


@lru_cache(maxsize=4)
def _loaded(files: Files, stamp: tuple[Any, ...], config: str) -> tuple[Tokenizer, Bpe]:
    from evolve.weights.bpe import bpe_of
    from evolve.weights.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(files, json.loads(config))
    return tokenizer, bpe_of(tokenizer)


# The values of a gene that says how many are few, and an answer holds maps and files, no weights.
@lru_cache(maxsize=8)
def _extension(files: Files, stamp: tuple[Any, ...], config: str, wanted: Settings) -> Extension:
    import numpy as np

    from evolve.weights.bpe import extended

    tokenizer, bpe = _loaded(files, stamp, config)
    chosen = choose(bpe, wanted.request)
    if len(chosen.merges) < wanted.count:
        raise ModelError(too_few(chosen, wanted))
    merges = [(merge.left, merge.right) for merge in chosen.merges[: wanted.count]]
    made = extended(files, tokenizer, json.loads(config), merges)
    old = np.array(sorted(set(tokenizer.ids.values())), np.int64)
    tokens = tuple(left + right for left, right in merges)
    return Extension(made.files, tokens, tokenizer.size, old, _pieces(merges, bpe), chosen, bpe)


def too_few(chosen: Chosen, wanted: Settings) -> str:
    """Return the message for a text that gives fewer tokens than are wanted."""
    found = len(chosen.merges)
    if wanted.request.dataset is None:
        return f"the terms need {found} tokens, not {wanted.count}: lower it, or give a dataset too"
    return (
        f"the dataset gives {found} tokens ({wanted.request.method}) that occur "
        f"{wanted.request.min_frequency} times or more, not "
        f"{wanted.count}: lower it or selection.min_frequency, or give more text"
    )


def _pieces(merges: Sequence[tuple[str, str]], bpe: Bpe) -> tuple[Mixture, ...]:
    import numpy as np

    ids = {token: number for number, token in enumerate(bpe.tokens) if token}
    found: dict[str, tuple[int, ...]] = {}
    for left, right in merges:
        sides = [found[side] if side in found else (ids[side],) for side in (left, right)]
        found[left + right] = sides[0] + sides[1]
    return tuple(
        (np.array(own, np.int64), np.array([bpe.length(bpe.tokens[one]) for one in own], np.float64))
        for own in found.values()
    )


@lru_cache(maxsize=8)
def contexts_of(files: Files, stamp: tuple[Any, ...], config: str, wanted: Settings) -> tuple[Mixture, ...]:
    """Return the old tokens in the contexts of the new ones, their pieces where the text does not show any.

    Raises:
        UserError: The dataset cannot be read.
    """
    import numpy as np

    from evolve.stages.vocab.contexts import nearest

    extension = _extension(files, stamp, config, wanted)
    source = wanted.request.dataset
    if source is None:
        raise UserError("contexts need a dataset")
    pieces = [rows.tolist() for rows, _ in extension.pieces]
    found = nearest(pieces, documents(source), extension.bpe)
    return tuple(
        (rows, np.ones(len(rows))) if mixture is None else mixture
        for mixture, (rows, _) in zip(found, extension.pieces, strict=True)
    )


def contexts(model: Model, wanted: Settings) -> tuple[Mixture, ...]:
    """Return :func:`contexts_of` for a model."""
    config = json.dumps(dict(model.config), sort_keys=True, default=str)
    return contexts_of(model.files, _stamp(model.files), config, wanted)


def _stamp(files: Files) -> tuple[Any, ...]:
    """Return what changes when a file is replaced; of files in memory the contents are compared."""
    from evolve.weights.files import contents

    found = []
    for name, content in contents(files).items():
        if not isinstance(content, bytes):
            stat = content.stat()
            found.append((name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


def loaded_size(model: Model) -> int:
    """Return the rows that a model's tokenizer needs.

    Raises:
        ModelError: There is no tokenizer that can be extended.
    """
    config = json.dumps(dict(model.config), sort_keys=True, default=str)
    return _loaded(model.files, _stamp(model.files), config)[0].size
