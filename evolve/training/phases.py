"""Progressive training: which parameters are trained when, and how fast.

Everything is a pure function of the progress (the share of the steps that are done) and a parameter's name.
A parameter that rests keeps its value exactly: it gets no gradient, no momentum and no weight decay.
"""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Ends:
    """The embeddings and the layers at both ends, as in "2x2 LS" of arXiv:2406.11477.

    Attributes:
        top: So many layers at the end.
        bottom: So many at the beginning.
    """

    top: int
    bottom: int


Train: TypeAlias = Literal["all", "embeddings", "new_embeddings"] | tuple[str, ...] | Ends
"""What a phase trains: everything, the tables of tokens, their new rows alone, both ends, or names by
pattern."""

EMBEDDINGS = ("embed_tokens", "lm_head", "embed_in", "embed_out", "wte", "word_embeddings")
"""Parts of the names of the tables with a row a token."""
_POSITIONS = ("wpe", "embed_positions")


class Moves(NamedTuple):
    """How a parameter moves.

    Attributes:
        rate: Factor of the learning rate; 0: it rests.
        new_rows: Whether only the rows of new tokens move.
    """

    rate: float
    new_rows: bool = False


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        until: Where it ends, as a share of the steps.
        train: What is trained.
        rates: Pattern of names to a factor of the learning rate; factors of all that match are multiplied.
        replay: Factor of the share of replay.
    """

    until: float = 1.0
    train: Train = "all"
    rates: Mapping[str, float] = field(default_factory=dict)
    replay: float = 1.0


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern is a whole name, with ``*`` and ``?``, or whole parts of one between dots.

    ``embed_tokens`` matches ``model.embed_tokens.weight``; ``layers.1`` matches ``layers.1.norm.weight`` and
    not ``layers.11.norm.weight``.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return f".{pattern}." in f".{name}."


def phase_at(phases: Sequence[Phase], progress: float) -> Phase:
    """Return the phase of a progress; a phase that ends where it begins is never there.

    Args:
        phases: In order; empty: everything is trained from start to end.
        progress: From 0, below 1 while there are steps.
    """
    return next((phase for phase in phases if progress < phase.until), phases[-1] if phases else Phase())


@dataclass(frozen=True)
class Unfreezing:
    """Gradual unfreezing (Howard and Ruder 2018, arXiv:1801.06146): the top layers are trained first.

    Attributes:
        groups: Groups of layers from the top, at least 1. The head, the last norm and the first group are
            trained from the start, the embeddings join with the last.
        until: When the last group joins, as a share of the steps; the others join evenly before.
    """

    groups: int
    until: float


def moves(phase: Phase, name: str, decay: float = 1.0, layers: int = 0) -> Moves:
    """Return how a parameter moves in a phase.

    Args:
        phase: The phase.
        name: The parameter's, with dots.
        decay: Factor of the learning rate from each layer to the one below it (Howard and Ruder 2018,
            Universal language model fine-tuning, arXiv:1801.06146); the embeddings are below the first.
        layers: How many layers the model has.
    """
    table = any(matches(part, name) for part in EMBEDDINGS)
    if phase.train == "all":
        trained = True
    elif phase.train in ("embeddings", "new_embeddings"):
        trained = table
    elif isinstance(phase.train, Ends):
        layer = layer_of(name)
        trained = table if layer is None else layer < phase.train.bottom or layer >= layers - phase.train.top
    else:
        trained = any(matches(pattern, name) for pattern in phase.train)
    if not trained:
        return Moves(0.0)
    rate = decay ** depth_below_top(name, layers) if decay != 1.0 else 1.0
    for pattern, factor in phase.rates.items():
        if matches(pattern, name):
            rate *= factor
    return Moves(rate, phase.train == "new_embeddings")


def depth_below_top(name: str, layers: int) -> int:
    """Return 0 for what is above the last layer, 1 for it, and one more than all layers for embeddings."""
    if (layer := layer_of(name)) is not None:
        return layers - layer
    head = any(matches(part, name) for part in ("lm_head", "embed_out"))
    below = any(matches(part, name) for part in (*EMBEDDINGS, *_POSITIONS))
    return layers + 1 if below and not head else 0


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter belongs to, or None."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else None


def thawed(name: str, progress: float, unfreezing: Unfreezing, layers: int) -> bool:
    """Return whether a parameter has joined a gradual unfreezing.

    Args:
        name: The parameter's, with dots.
        progress: The share of the steps that are done.
        unfreezing: How the layers join.
        layers: How many layers the model has; with fewer layers than groups some groups are empty.
    """
    groups, until = unfreezing.groups, unfreezing.until
    joined = sum(progress >= until * number / max(1, groups - 1) for number in range(groups))
    return joined == groups or depth_below_top(name, layers) <= math.ceil(layers * joined / groups)
