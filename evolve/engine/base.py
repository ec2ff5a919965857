"""What runs candidates: a pool of evaluators, and the loop that feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.types import Job, Outcome, Parent


@dataclass(frozen=True)
class EvaluatorSpec:
    """All that an evaluator needs to start, on any node that sees the parents.

    Attributes:
        score: Tasks and engine arguments, the backend resolved.
        parents: Name to parent, with contents.
        first: Name of the parent that the engine is started with.
        fingerprint: What the scorer must report, so that every node scores the same items; empty: unchecked.
        threads: CPU threads of the evaluator; part of what fixes the bits of a score.
        seed: Seed for stages without one.
        folder: What the paths of data files are relative to: Ray starts its workers in another folder.
        cache_bytes: Most bytes that merging keeps of the parents; None: as ``EngineConfig`` says.
    """

    score: ScoreConfig
    parents: Mapping[str, Parent]
    first: str
    fingerprint: str
    threads: int
    seed: int
    folder: str = ""
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Result:
    """A finished job.

    Attributes:
        job: The job.
        outcome: What came of it.
        attempts: How often it was started; more than 1 after a lost worker.
    """

    job: Job
    outcome: Outcome
    attempts: int


class Pool(Protocol):
    """Evaluators that live as long as the pool."""

    @property
    def size(self) -> int:
        """Number of evaluators."""
        ...

    def run(self, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> Iterator[Result]:
        """Evaluate jobs side by side and yield each as it finishes, in any order.

        A candidate's failure is a ``Failed`` outcome. Work that is lost with an evaluator is tried once
        more.

        Raises:
            Interrupted: ``should_stop`` became true; unfinished jobs are dropped.
            UserError: No evaluator can start; the message holds the cause.
        """
        ...

    def close(self) -> None:
        """End all evaluators. Safe to call twice."""
        ...


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs in the order in which they are started: those that train first, else as they came.

    A candidate that trains takes minutes where another takes seconds; started last, it would leave all other
    evaluators waiting. Results do not depend on the order.
    """
    from evolve.stages.pipeline import trained

    return sorted(jobs, key=lambda job: -trained(job.recipe))


class Loop(Protocol):
    """A search that advances by one generation at a time and keeps its state on disk."""

    def step(self) -> bool:
        """Advance by one generation. True when nothing is left to do."""
        ...

    def close(self) -> None:
        """Release locks and storages."""
        ...
