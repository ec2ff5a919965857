"""Texts of a file, split for the search and the holdout, and the networks that two scorers compare."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, ModelError, UserError
from evolve.score.items import distinct, ranked
from evolve.score.scorers.base import ScorerProblem
from evolve.types import TaskScore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evolve.score.engines.base import Engine
    from evolve.score.items import Item
    from evolve.types import Split
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer


def read_texts(path: str, key: str, *, field: str = "path") -> list[str]:
    """Return the texts of a ``.jsonl`` file, or the one text of any other.

    Args:
        path: The file.
        key: Where a line has its text.
        field: The key of the block that names the file, for messages.

    Raises:
        ScorerProblem: It cannot be read, or a line has no text.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScorerProblem(field, f"{path} cannot be read as UTF-8 text: {error}") from error
    if not path.endswith(".jsonl"):
        return [text]
    found = []
    # Not splitlines: a JSON text may hold other ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)[key]
        except (ValueError, KeyError, TypeError) as error:
            raise ScorerProblem(field, f"{path}, line {number}: no JSON object with a key {key!r}") from error
        if not isinstance(document, str):
            raise ScorerProblem("key", f"{path}, line {number}: {key!r} holds no text")
        found.append(document)
    return found


def split_texts(
    texts: Sequence[str], items: int | None, held: int, seed: int, *, field: str, path: str
) -> dict[Split, list[Item]]:
    """Return disjoint texts for search and holdout, drawn by seed; a short file keeps half for the search.

    Raises:
        ScorerProblem: There are too few.
    """
    found, _ = distinct([text for text in texts if text.strip()])
    order = ranked(found, seed)
    held = min(held, len(order) // 2)
    wanted = items or max(1, len(order) - held)
    if len(order) < wanted + held:
        raise ScorerProblem(
            "items" if items else field,
            f"{path} has {len(order)} distinct texts, {held} of them are the holdout: lower items, or give "
            "more",
        )
    return {
        "holdout": sorted(order[:held], key=lambda item: item.key),
        "search": sorted(order[held : held + wanted], key=lambda item: item.key),
    }


def located(path: str) -> str:
    """Return a path as workers need it, who start in another folder; a hub id stays."""
    file = Path(path).expanduser()
    return str(file.absolute()) if file.exists() else path


def open_other(source: str, field: str) -> tuple[Model, Tokenizer, str]:
    """Return a model that candidates are compared with, its tokenizer and its content.

    Raises:
        ScorerProblem: It is not there, or is damaged.
    """
    from dataclasses import replace

    from evolve.weights.content import content_of
    from evolve.weights.hub import resolve
    from evolve.weights.reader import open_model
    from evolve.weights.tokenizer import load_tokenizer

    try:
        path = resolve(field, source).path
        model = open_model(path)
        content = content_of(path)
        return replace(model, content=content), load_tokenizer(model.files, model.config), content
    except (ModelError, UserError) as error:
        raise ScorerProblem(field, str(error).removeprefix(f"models.{field}: ")) from error


def require_same_tokens(engine: Engine, other: Tokenizer, what: str) -> None:
    """Check that the candidate's ids mean what the other model's do.

    Raises:
        CandidateError: They do not.
    """
    from evolve.weights.tokenizer import load_tokenizer

    model = engine.model
    own = load_tokenizer(model.files, model.config)
    if dict(own.ids) != dict(other.ids):
        raise CandidateError(
            "score",
            f"{what} needs two models of one tokenizer: the candidate has {len(own.ids)} tokens, the other "
            f"{len(other.ids)}, and ids differ",
        )


@contextlib.contextmanager
def network_of(engine: Engine) -> Iterator[Any]:
    """Yield the candidate as a transformers network: the engine's own, or one beside it for as long."""
    import torch

    own: Any = getattr(engine.lm, "model", None)
    # Of vLLM's engine it is no network of this process.
    if isinstance(own, torch.nn.Module):
        yield own
        return
    from evolve.weights.network import open_network

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, _ = open_network(engine.model, device)
    try:
        yield network
    finally:
        del network
        if device == "cuda":
            torch.cuda.empty_cache()


def ratio(
    metric: str, keys: Sequence[str], pairs: Sequence[tuple[float, float]], *, higher_is_better: bool
) -> TaskScore:
    """Return ``sum(a) / sum(b)`` of items with ``(a, b)``; the items' values are influences, with that mean.

    Raises:
        CandidateError: Nothing is below the line, or the number is not finite.
    """
    import numpy as np

    from evolve.score.metrics import standard_error

    table = np.array(pairs, np.float64).reshape(-1, 2)
    if not table[:, 1].sum() > 0:
        raise CandidateError("score", f"{metric}: there is nothing to measure on: longer texts are needed")
    value = float(table[:, 0].sum() / table[:, 1].sum())
    if not np.isfinite(table).all():
        raise CandidateError("non_finite", f"{metric} is NaN or infinite")
    values = (value + (table[:, 0] - value * table[:, 1]) / table[:, 1].mean()).tolist()
    return TaskScore(
        metric=metric,
        value=value,
        stderr=standard_error(values),
        higher_is_better=higher_is_better,
        items=dict(zip(keys, values, strict=True)),
    )
