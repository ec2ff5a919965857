"""Scores model folders with one hot engine, for ``evolve eval``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from evolve.errors import CandidateError, UserError
from evolve.types import Failed, Scored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.scorer import Scorer
    from evolve.types import Outcome, Parent, Split
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)


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
    from evolve.score.engines.choose import choose_backend
    from evolve.score.scorer import Scorer
    from evolve.weights.reader import open_model

    score = score.model_copy(update={"backend": choose_backend(score)})
    models = [(parent.name, open_model(parent.path)) for parent in parents]
    outcomes: dict[tuple[str, Split], Outcome] = {}
    with _stdout_for_results():
        scorer = Scorer(score)
        scorer.prepare()
        with contextlib.closing(_Bench(score, scorer, threads)) as bench:
            for name, model in models:
                outcomes |= {(name, split): bench.score(model, split) for split in splits}
    return outcomes


class _Bench:
    """One engine for all models. It is opened again where it broke."""

    def __init__(self, score: ScoreConfig, scorer: Scorer, threads: int) -> None:
        self._config = score
        self._scorer = scorer
        self._threads = threads
        self._engine: Engine | None = None
        self._held: Model | None = None
        self._loaded = 0.0
        self._rehearsed: set[tuple[str, Split]] = set()

    def score(self, model: Model, split: Split) -> Outcome:
        """Score a model, once more where the engine died on it."""
        outcome = self._try(model, split)
        if isinstance(outcome, Failed) and outcome.retryable:
            logger.warning("%s; once more", outcome.message)
            outcome = self._try(model, split)
        return outcome

    def close(self) -> None:
        """Stop the engine."""
        engine, self._engine, self._held = self._engine, None, None
        if engine is not None:
            with contextlib.suppress(Exception):
                engine.close()

    def _try(self, model: Model, split: Split) -> Outcome:
        from evolve.score.engines.fit import as_candidate_error

        try:
            return self._score(self._hold(model), split)
        except CandidateError as error:
            return Failed(error.kind, str(error), error.retryable)
        except UserError:
            raise
        except Exception as error:  # of one model: the others are still scored
            logger.warning("the engine is closed after an error", exc_info=True)
            self.close()
            failure = as_candidate_error(error, "score")
            return Failed(failure.kind, str(failure), failure.retryable)

    def _hold(self, model: Model) -> Engine:
        """Return the engine with a model in it."""
        from evolve.registry import ENGINES

        if self._engine is None or self._held is not model:
            began = time.perf_counter()
            self._held = None
            if self._engine is None:
                self._engine = ENGINES.load(self._config.backend)(self._config, model, self._threads)
            else:
                self._engine.load(model)
            self._held, self._loaded = model, time.perf_counter() - began
        return self._engine

    def _score(self, engine: Engine, split: Split) -> Scored:
        from evolve.score.objective import objective

        # The speed of a model is that of its passes, not of who came first with its tokenizer.
        key = (getattr(engine.lm, "tokenizer_key", ""), split)
        if key not in self._rehearsed:
            self._scorer.rehearse(engine, split)
            self._rehearsed.add(key)
        began = time.perf_counter()
        tasks = self._scorer.score(engine, split)
        value, stderr = objective(tasks, self._config)
        seconds = time.perf_counter() - began
        spent = {"load": self._loaded, "score": seconds, "total": self._loaded + seconds}
        return Scored(value, stderr, tasks, spent)


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
