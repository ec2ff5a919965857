"""The evaluator in this process, one job after another: for tests, debugging and small machines."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

from evolve.engine.base import Result, longest_first
from evolve.engine.evaluator import Evaluator
from evolve.errors import CandidateError, Interrupted
from evolve.types import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from evolve.engine.base import EvaluatorSpec
    from evolve.types import Job, Outcome


class InlinePool:
    """A pool of one evaluator that shares the process of the loop."""

    def __init__(self, spec: EvaluatorSpec, *, timeout: float) -> None:
        self._evaluator = Evaluator(spec)
        self._timeout = timeout

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    def run(self, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> Iterator[Result]:
        """See :class:`evolve.engine.base.Pool`."""
        if jobs:
            self._evaluator.start()
        for job in longest_first(jobs):
            for attempt in (1, 2):
                if should_stop():
                    raise Interrupted("stopped")
                outcome = self._evaluate(job)
                if not (isinstance(outcome, Failed) and outcome.retryable) or attempt == 2:
                    yield Result(job, outcome, attempt)
                    break

    def _evaluate(self, job: Job) -> Outcome:
        try:
            with _alarm(self._timeout):
                return self._evaluator.evaluate(job)
        except CandidateError as error:  # the alarm rang between the evaluator's own handlers
            self._evaluator.reset()
            return Failed(error.kind, str(error), error.retryable)

    def close(self) -> None:
        """See :class:`evolve.engine.base.Pool`."""
        self._evaluator.close()


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise a ``timeout`` in the code inside after ``seconds``.

    Signals reach the main thread only; elsewhere a candidate is not limited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signum: int, _frame: FrameType | None) -> None:
        raise CandidateError("timeout", f"took longer than engine.candidate_timeout ({seconds:g} s)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
