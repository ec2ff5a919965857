"""Evaluators as Ray actors: one process each, in the island's placement group.

An actor that dies or hangs is replaced in its own bundle, and gets no work before it reports ready. The
pool, not Ray, decides on second tries: a restart by Ray would hide whether the work was lost.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.engine.base import Result, longest_first
from evolve.errors import Interrupted, UserError
from evolve.types import Failed, FailureKind, Job, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evolve.engine.base import EvaluatorSpec

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_START_SECONDS = 900.0
_START_TRIES = 3
_LOG_LIMIT = 64_000


class EvaluatorActor:
    """The body of the actor. Everything it prints while it works on a job goes to the job's log."""

    def __init__(self, spec: EvaluatorSpec, log_folder: str) -> None:
        from evolve.engine.evaluator import Evaluator

        self._evaluator = Evaluator(spec)
        self._log_folder = Path(log_folder)
        self._log_folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> float:
        """Start the engine; seconds it took. What it prints goes to ``start.log``."""
        with _redirected(self._log_folder / f"start-{os.getpid()}.log"):
            return self._evaluator.start()

    def evaluate(self, job: Job) -> Outcome:
        """Evaluate one job, its output captured."""
        from dataclasses import replace

        path = self._log_folder / f"{job.key}.log"
        with _redirected(path):
            outcome = self._evaluator.evaluate(job)
        return replace(outcome, log=_tail(path) + outcome.log)


@dataclass(eq=False)
class _Slot:
    """One bundle of the placement group and the actor that lives in it now."""

    index: int
    actor: Any = None
    ready: bool = False
    failures: int = 0
    pending: Any = None
    job: Job | None = None
    deadline: float = 0.0


@dataclass
class _Queue:
    """Jobs that wait, with how often each was started."""

    waiting: deque[Job]
    attempts: dict[str, int] = field(default_factory=dict)

    def take(self) -> Job:
        job = self.waiting.popleft()
        self.attempts[job.key] = self.attempts.get(job.key, 0) + 1
        return job


class RayPool:
    """A pool of evaluator actors. Lives inside the island's process."""

    def __init__(
        self,
        spec: EvaluatorSpec,
        *,
        size: int,
        cpus: float,
        gpus: float,
        timeout: float,
        group: Any,
        scratch: Path,
        body: type = EvaluatorActor,
    ) -> None:
        self._spec = spec
        self._cpus = cpus
        self._gpus = gpus
        self._timeout = timeout
        self._group = group
        self._body = body
        # After a crash the island reads them where it shares a disk with the evaluator.
        self._logs = scratch / "logs"
        self._slots = [_Slot(index) for index in range(size)]
        for slot in self._slots:
            self._start(slot)

    @property
    def size(self) -> int:
        """Number of actors."""
        return len(self._slots)

    def run(self, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> Iterator[Result]:
        """See :class:`evolve.engine.base.Pool`."""
        import ray

        for slot in self._slots:  # a stopped run has killed them; those given up get another chance
            if slot.actor is None:
                slot.failures = 0
                self._start(slot)
        queue = _Queue(deque(longest_first(jobs)))
        left = len(jobs)
        while left:
            if should_stop():
                self._abandon()
                raise Interrupted("stopped")
            self._assign(queue)
            pending = {slot.pending: slot for slot in self._slots if slot.pending is not None}
            done, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_SECONDS)
            finished = [pending[reference] for reference in done]
            late = [slot for slot in pending.values() if slot not in finished and self._is_late(slot)]
            for slot in [*finished, *late]:
                result = self._collect(slot, queue, late=slot in late)
                if result is not None:
                    left -= 1
                    yield result

    def _assign(self, queue: _Queue) -> None:
        for slot in self._slots:
            if queue.waiting and slot.ready and slot.pending is None:
                slot.job = queue.take()
                slot.deadline = time.monotonic() + self._timeout
                slot.pending = slot.actor.evaluate.remote(slot.job)

    @staticmethod
    def _is_late(slot: _Slot) -> bool:
        return time.monotonic() > slot.deadline

    def _collect(self, slot: _Slot, queue: _Queue, *, late: bool) -> Result | None:
        """Take what a slot's call brought. None: nothing is finished (a start, or a second try)."""
        import ray

        reference, slot.pending = slot.pending, None
        job, slot.job = slot.job, None
        if late:
            self._start(slot)
            if job is None:
                self._start_failed(slot, TimeoutError(f"no answer after {_START_SECONDS:g} s"))
                return None
            message = f"took longer than engine.candidate_timeout ({self._timeout:g} s)"
            return Result(job, Failed("timeout", message, log=self._log_of(job)), queue.attempts[job.key])
        try:
            answer = ray.get(reference)
        except Exception as error:  # a dead actor has many exception classes; the job is lost in all of them
            if job is None:
                self._start(slot)
                self._start_failed(slot, error)
                return None
            log = self._log_of(job)
            self._start(slot)
            return self._lost(job, error, log, queue)
        if job is None:
            slot.ready = True
            slot.failures = 0
            return None
        if isinstance(answer, Failed) and answer.retryable and queue.attempts[job.key] == 1:
            queue.waiting.appendleft(job)
            return None
        return Result(job, answer, queue.attempts[job.key])

    def _lost(self, job: Job, error: Exception, log: str, queue: _Queue) -> Result | None:
        """Try lost work once more; the second loss is the candidate's failure."""
        import ray.exceptions

        if queue.attempts[job.key] == 1:
            logger.warning("candidate %s was lost with its evaluator (%s); once more", job.key, _brief(error))
            queue.waiting.appendleft(job)
            return None
        kind: FailureKind = "oom" if isinstance(error, ray.exceptions.OutOfMemoryError) else "lost_worker"
        outcome = Failed(kind, f"its evaluator died twice: {_brief(error)}", retryable=True, log=log)
        return Result(job, outcome, queue.attempts[job.key])

    def _start_failed(self, slot: _Slot, error: Exception) -> None:
        """Count failed starts in a row; give a slot up after some, and the run when no slot is left."""
        import ray.exceptions

        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, UserError):
            raise cause
        slot.failures += 1
        logger.warning("evaluator %d did not start: %s", slot.index, _brief(error))
        if slot.failures >= _START_TRIES:
            self._kill(slot)  # its node may be gone; the others go on
        if all(other.failures >= _START_TRIES for other in self._slots):
            logs = "".join(_tail(path) for path in sorted(self._logs.glob("start-*.log"))[-1:])
            message = f"an evaluator failed to start {slot.failures} times: {_brief(error)}\n{logs[-4000:]}"
            raise UserError(message.rstrip())

    def _start(self, slot: _Slot) -> None:
        """Put a new actor into a slot, and ask it to start its engine."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._kill(slot)
        threads = str(self._spec.threads)
        actor = ray.remote(self._body).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=slot.index + 1
            ),
            runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    "TOKENIZERS_PARALLELISM": "false",
                }
            },
        )
        slot.actor = actor.remote(self._spec, str(self._logs))
        slot.ready = False
        slot.job = None
        slot.deadline = time.monotonic() + _START_SECONDS
        slot.pending = slot.actor.start.remote()

    @staticmethod
    def _kill(slot: _Slot) -> None:
        import ray

        if slot.actor is not None:
            ray.kill(slot.actor, no_restart=True)
        slot.actor = None
        slot.pending = None

    def _log_of(self, job: Job) -> str:
        return _tail(self._logs / f"{job.key}.log")

    def _abandon(self) -> None:
        for slot in self._slots:
            self._kill(slot)

    def close(self) -> None:
        """See :class:`evolve.engine.base.Pool`."""
        self._abandon()


class _redirected:
    """Send this process' stdout and stderr, C libraries included, into a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        import sys

        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = (os.dup(1), os.dup(2))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        import sys

        sys.stdout.flush()
        sys.stderr.flush()
        for saved, target in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, target)
            os.close(saved)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_LIMIT))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
