"""Scores model folders with one hot engine, for ``evolve eval``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from evolve.errors import CandidateError
from evolve.types import Failed, Scored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.scorer import Scorer
    from evolve.types import Outcome, Parent, Split


def score_models(
    parents: Sequence[Parent], score: ScoreConfig, splits: Sequence[Split], *, threads: int
) -> dict[tuple[str, Split], Outcome]:
    """Score models one after another.

    Args:
        parents: The models.
        score: Tasks and engine.
        splits: Which items.
        threads: CPU threads of the engine.

    Returns:
        ``(name of the model, split)`` to what came out of it.
    """
    from evolve.registry import ENGINES
    from evolve.score.engines.choose import choose_backend
    from evolve.score.scorer import Scorer
    from evolve.weights.reader import open_model

    score = score.model_copy(update={"backend": choose_backend(score)})
    models = [(parent.name, open_model(parent.path)) for parent in parents]
    outcomes: dict[tuple[str, Split], Outcome] = {}
    engine: Engine | None = None
    with _stdout_for_results():
        scorer = Scorer(score)
        scorer.prepare()
        try:
            for name, model in models:
                began = time.perf_counter()
                try:
                    if engine is None:
                        engine = ENGINES.load(score.backend)(score, model, threads)
                    else:
                        engine.load(model)
                except CandidateError as error:
                    outcomes |= {(name, split): Failed(error.kind, str(error)) for split in splits}
                    continue
                loaded = time.perf_counter() - began
                for split in splits:
                    outcomes[name, split] = _score(scorer, engine, score, split, loaded)
        finally:
            if engine is not None:
                engine.close()
    return outcomes


def _score(scorer: Scorer, engine: Engine, score: ScoreConfig, split: Split, loaded: float) -> Outcome:
    from evolve.score.objective import objective

    began = time.perf_counter()
    try:
        tasks = scorer.score(engine, split)
        value, stderr = objective(tasks, score)
    except CandidateError as error:
        return Failed(error.kind, str(error))
    seconds = time.perf_counter() - began
    return Scored(value, stderr, tasks, {"load": loaded, "score": seconds, "total": loaded + seconds})


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Send to stderr what engines and libraries print, so that stdout holds the results alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
