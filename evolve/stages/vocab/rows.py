"""Embedding and head with rows for new tokens, made when they are read. All other tensors pass through."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

from evolve.errors import CandidateError, ModelError
from evolve.registry import INITIALISERS
from evolve.stages.vocab.initialisers.base import NewTokens
from evolve.weights.model import Model, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from evolve.stages.vocab.extension import Extension
    from evolve.stages.vocab.initialisers.base import Mixture
    from evolve.weights.files import Files


@dataclass(frozen=True)
class Rule:
    """How the new rows of a table are made.

    Attributes:
        initialiser: Name of the initialiser.
        norm: Their length as a multiple of the mean length of old rows; None: as it comes out.
    """

    initialiser: str
    norm: float | None


@dataclass(frozen=True)
class Tables:
    """The tensors of a model with one row for each token.

    Attributes:
        names: All of them.
        embedding: The one that turns tokens into vectors.
        rows: Their number of rows.
    """

    names: tuple[str, ...]
    embedding: str
    rows: int


def tables_of(model: Model) -> Tables:
    """Return the tables of a model; reads no weights.

    Raises:
        ModelError: They cannot be told.
    """
    config = json.dumps(dict(model.config), sort_keys=True, default=str)
    return _tables(config, tuple(model.specs.items()), model.files)


# transformers builds the architecture for it, which every candidate would wait for.
@lru_cache(maxsize=8)
def _tables(config: str, specs: tuple[tuple[str, TensorSpec], ...], files: Files) -> Tables:
    from evolve.weights.skeleton import Skeleton
    from evolve.weights.tables import vocabulary_tables

    model = Model(json.loads(config), dict(specs), _refuse, files)
    names = vocabulary_tables(model)
    skeleton = Skeleton.of(model.config)
    places = {} if skeleton is None else skeleton.loaded(names)
    embedding = "" if skeleton is None else skeleton.ends()[0]
    found = [name for name, (place, _) in places.items() if place == embedding]
    if len(found) != 1:
        raise ModelError("which tensor is the embedding cannot be told: extend another model")
    return Tables(names, found[0], int(model.config["vocab_size"]))


def grown_size(rows: int, needed: int, multiple: int) -> int:
    """Return the rows of the result: those there are where they are enough, else rounded up."""
    return rows if needed <= rows else -(-needed // multiple) * multiple


def header(model: Model, tables: Tables, extension: Extension, multiple: int) -> Model:
    """Return config, specs and files of the extended model. Its tensors must not be read."""
    size = grown_size(tables.rows, extension.first + len(extension.tokens), multiple)
    specs = {
        name: TensorSpec((size, *spec.shape[1:]), spec.dtype) if name in tables.names else spec
        for name, spec in model.specs.items()
    }
    config = {**model.config, "vocab_size": size}
    return replace(
        model,
        config=config,
        specs=specs,
        files=extension.files,
        tensor=_refuse,
        exact=None,
        content="",
        new_tokens=range(extension.first, extension.first + len(extension.tokens)),
    )


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"{name} was asked for, but only the headers of this model are known")


def extended_model(
    model: Model,
    tables: Tables,
    extension: Extension,
    multiple: int,
    rules: Callable[[bool], Rule],
    contexts: Callable[[], Sequence[Mixture]],
    seed: int,
) -> Model:
    """Return the model with rows for new tokens.

    Padding rows that are new get the mean of the old tokens' rows. In a head their logit is then the mean of
    the others', so none of them is ever the largest, and m of them beside n tokens take at most m / (n + m)
    of the probability (Hewitt 2021). Zeros would take a logit of 0, which may well be the largest. Padding
    rows that were there stay as they are.

    Args:
        model: The model before.
        tables: Its tables.
        extension: The new tokens.
        multiple: What the number of rows is rounded up to.
        rules: Returns the rule of the embedding (True) or of the head (False).
        contexts: Returns the old tokens in the contexts of each new one.
        seed: Seed of random rows.
    """
    outline = header(model, tables, extension, multiple)

    def growing(read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        def tensor(name: str) -> Tensor:
            if name not in tables.names:
                return read(name)
            is_embedding = name == tables.embedding
            new = NewTokens(
                extension.tokens,
                extension.pieces,
                extension.old[extension.old < tables.rows],
                contexts,
                [_key(seed, name, token) for token in extension.tokens],
            )
            return _grown(read(name), outline.specs[name].shape[0], extension.first, new, rules(is_embedding))

        return tensor

    return replace(
        outline,
        tensor=growing(model.tensor),
        exact=None if model.exact is None else growing(model.exact),
    )


def _grown(table: Tensor, size: int, first: int, new: NewTokens, rule: Rule) -> Tensor:
    """Return a table with ``size`` rows, the new ones from row ``first`` on."""
    import torch

    from evolve.tensors.embeddings import mean_length, mean_row, of_length
    from evolve.tensors.fused import all_finite

    rows = INITIALISERS.load(rule.initialiser).rows(table, new)
    if rule.norm is not None and rows.ndim == 2:
        rows = of_length(rows, rule.norm * mean_length(table, new.old))
    out = torch.empty((size, *table.shape[1:]), dtype=table.dtype, device=table.device)
    out[: len(table)] = table
    if size > len(table):
        out[len(table) :] = mean_row(table, new.old).to(table.device, table.dtype)
    end = first + len(new.tokens)
    out[first:end] = rows.to(table.device, table.dtype)
    if not all_finite(out[first:end]):
        message = f"rows of new tokens are NaN or infinite ({rule.initialiser}, norm {rule.norm})"
        raise CandidateError("non_finite", message)
    return out


def _key(seed: int, name: str, token: str) -> int:
    import numpy as np

    digest = hashlib.sha256(f"{seed}\0{name}\0{token}".encode()).digest()
    return int(np.frombuffer(digest[:8], "<u8")[0])
