"""What a training showed, out of the file beside the model that it made, cut to a bounded size."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

from evolve.stages.kept import log_of
from evolve.types import Training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

MOST_ROWS = 60
"""Most points of a curve that is kept with a candidate."""
MOST_COLUMNS = 10
"""Most numbers of a point."""
_DIGITS = 5
_LEFT_OUT = ("epoch", "learning_rate", "grad_norm")
"""Numbers of a log that say nothing of what was learned."""


def shown(stage: str, model: Model) -> Training | None:
    """Return what the training of a model showed, or None: nobody kept it, or it cannot be read.

    Args:
        stage: What the training is called.
        model: What the stage has made.
    """
    path = log_of(model)
    if path is None:
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        columns, rows = thinned(found["log"])
        return Training(
            stage,
            int(found["steps"]),
            int(found["tokens"]),
            float(found["seconds"]),
            columns,
            rows,
            written=str(found.get("written", {}).get("content", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # A curve is for looking at: without it the candidate is as good.
        logger.warning("%s: the loss curve of %s cannot be read: %r", path, stage, error)
        return None


def thinned(
    log: Sequence[Mapping[str, float]], *, most: int = MOST_ROWS
) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return the columns of a log and its lines, neighbours averaged so that at most ``most`` are left.

    A line says what the steps since the line before were like on average, so lines are averaged by the
    number of their steps, and the new one stands at the last of them.

    Args:
        log: Lines with a ``step`` and a ``loss``, in the order of the steps.
        most: Lines that are left, at least 1.
    """
    names = dict.fromkeys(name for line in log for name in line if name not in _LEFT_OUT)
    columns = tuple(dict.fromkeys(("step", "loss", *names)))[:MOST_COLUMNS] if log else ()
    size = -(-len(log) // most)
    rows = []
    before = 0.0
    for start in range(0, len(log), max(1, size)):
        lines = log[start : start + size]
        steps = [float(line["step"]) for line in lines]
        spans = [max(1.0, step - last) for step, last in zip(steps, [before, *steps], strict=False)]
        before = steps[-1]
        values = (_mean([line.get(name, math.nan) for line in lines], spans) for name in columns[1:])
        rows.append((before, *values))
    return columns, tuple(rows)


def _mean(values: Sequence[float], spans: Sequence[float]) -> float:
    """Return the mean of the values that are there, weighted, with as many digits as a picture needs."""
    known = [(float(value), span) for value, span in zip(values, spans, strict=True) if math.isfinite(value)]
    if not known:
        return math.nan
    mean = sum(value * span for value, span in known) / sum(span for _, span in known)
    return float(f"{mean:.{_DIGITS}g}")
