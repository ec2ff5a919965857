"""Progressive training: which parameters are trained when, and how fast.

Everything is a pure function of the progress (the share of the steps that are done) and a parameter's name.
A parameter that rests keeps its value exactly: it gets no gradient, no momentum and no weight decay.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Train: TypeAlias = Literal["all", "embeddings", "new_embeddings"] | tuple[str, ...]
"""What a phase trains: everything, the tables of tokens, their new rows alone, or names by pattern."""

EMBEDDINGS = ("embed_tokens", "lm_head", "embed_in", "embed_out", "wte")
"""Parts of the names of the tables with a row a token."""


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
    return layers + 1 if not head and any(matches(part, name) for part in EMBEDDINGS) else 0


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a parameter belongs to, or None."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else None


def unfreezing(groups: int, layers: int, until: float = 1.0) -> tuple[Phase, ...]:
    """Return phases that train the top layers first, then more and more below them, all in the last one.

    Gradual unfreezing (Howard and Ruder 2018). The output head and the last norm are trained from the start.

    Args:
        groups: How many phases, at least 1.
        layers: How many layers the model has, at least ``groups``.
        until: Where the last group joins; from there to the end everything is trained.
    """
    phases = []
    for number in range(1, groups):
        lowest = layers - round(layers * number / groups)
        parts = tuple(f"layers.{layer}" for layer in range(lowest, layers))
        other = tuple(f"h.{layer}" for layer in range(lowest, layers))
        phases.append(
            Phase(until * number / groups, (*parts, *other, "norm", "ln_f", "lm_head", "embed_out"))
        )
    return (*phases, Phase(1.0))


def ends(top: int, bottom: int, layers: int) -> tuple[str, ...]:
    """Return patterns for the embeddings and the first and last layers, as in "2x2 LS" of arXiv:2406.11477.

    Args:
        top: So many layers at the end.
        bottom: So many at the beginning.
        layers: How many layers the model has.
    """
    chosen = sorted({*range(min(bottom, layers)), *range(max(0, layers - top), layers)})
    return (*EMBEDDINGS, *(f"{stack}.{layer}" for layer in chosen for stack in ("layers", "h")))
