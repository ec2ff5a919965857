"""What a run is doing, read from its folder: the numbers that every display draws."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evolve.report import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.store.rundir import RunDir

_WINDOW = 300.0
"""Seconds over which candidates per minute are counted."""

PHASES = {
    "checking": "checking the parents and tasks",
    "statistics": "gathering statistics of the parents",
    "baselines": "scoring the parents and their average",
    "search": "searching",
    "holdout": "scoring the holdout",
    "export": "exporting the best",
    "done": "done",
}


@dataclass(frozen=True)
class Progress:
    """One look at a run.

    Attributes:
        name: The run's name.
        phase: ``checking``, ``statistics``, ``baselines``, ``search``, ``holdout``, ``export`` or ``done``.
        generation: The current generation, counted from 0, or None before the search.
        generations: How many there will be, or None.
        complete: Candidates with a value.
        trials: How many there will be, or None.
        failed: Failures by kind.
        running: Candidates that are being evaluated.
        best: Best value so far.
        best_number: Its trial.
        best_parent: Value of the best parent.
        average: Value of the plain average.
        evaluators: How many evaluators work.
        evaluated: Records on disk, baselines included: moves also between generations.
        per_minute: Candidates per minute over the last minutes, or None while it is unknown.
        left: Seconds until the last trial, or None while it is unknown.
        elapsed: Seconds since the start, or None.
        reason: Why the search stopped, or None.
    """

    name: str
    phase: str
    generation: int | None = None
    generations: int | None = None
    complete: int = 0
    trials: int | None = None
    failed: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    best: float | None = None
    best_number: int | None = None
    best_parent: float | None = None
    average: float | None = None
    evaluators: int | None = None
    evaluated: int = 0
    per_minute: float | None = None
    left: float | None = None
    elapsed: float | None = None
    reason: str | None = None

    def facts(self) -> list[tuple[str, str]]:
        """Return ``(label, text)`` of everything that is known, in the order in which it is read."""
        facts = [("phase", PHASES.get(self.phase, self.phase))]
        if self.generation is not None:
            facts.append(("generation", f"{self.generation}" + _of(self.generations)))
        facts.append(("candidates", f"{self.complete}" + _of(self.trials)))
        if self.running:
            facts.append(("running", str(self.running)))
        if self.best is not None:
            trial = "" if self.best_number is None else f" (trial {self.best_number})"
            facts.append(("best so far", numbers.number(self.best) + trial))
        if self.best_parent is not None:
            facts.append(("best parent", numbers.number(self.best_parent)))
        if self.average is not None:
            facts.append(("plain average", numbers.number(self.average)))
        if self.per_minute is not None:
            facts.append(("per minute", f"{self.per_minute:.1f}"))
        if self.left is not None:
            facts.append(("time left", numbers.duration(self.left)))
        if self.evaluators is not None:
            facts.append(("evaluators", str(self.evaluators)))
        if any(self.failed.values()):
            facts.append(("failed", numbers.failures(dict(self.failed))))
        if self.reason:
            facts.append(("stopped because", self.reason))
        return facts

    def line(self) -> str:
        """Return everything in one line."""
        clock = numbers.duration(self.elapsed) if self.elapsed is not None else ""
        (_, phase), *rest = self.facts()
        return "  ".join(
            part for part in (clock, phase, *(f"{label} {text}" for label, text in rest)) if part
        )


class Reader:
    """Looks at a run again and again, and remembers enough to tell its speed. Never writes, never locks."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._seen: deque[tuple[float, int]] = deque()

    def look(self) -> Progress:
        """Read the state of the run as it is now."""
        state = self._run.state()
        evaluated = self._count_records(state.get("score_key"))
        now = time.time()
        if state.get("phase") == "search":
            self._seen.append((now, evaluated))
            while now - self._seen[0][0] > _WINDOW:
                self._seen.popleft()
        else:
            self._seen.clear()
        return progress_of(self._run.path.name, state, evaluated, per_minute=self._per_minute(), now=now)

    def _count_records(self, score_key: str | None) -> int:
        folder = self._run.path / "candidates" / (score_key or "")
        try:
            return sum(1 for file in folder.iterdir() if file.suffix == ".json")
        except FileNotFoundError:
            return 0

    def _per_minute(self) -> float | None:
        if len(self._seen) < 2:
            return None
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return 60 * (after - before) / (end - start) if end - start >= 1 and after > before else None


def progress_of(
    name: str, state: Mapping[str, Any], evaluated: int, *, per_minute: float | None, now: float
) -> Progress:
    """Return what ``state`` says, with the speed and the time left that follow from it."""
    trials, complete = state.get("trials"), int(state.get("complete") or 0)
    phase = str(state.get("phase") or "checking")
    started = state.get("started")
    end = state.get("updated") if phase == "done" else now
    left = None
    if phase == "search" and per_minute and trials:
        left = 60 * max(0, trials - complete) / per_minute
    return Progress(
        name=name,
        phase=phase,
        generation=state.get("generation"),
        generations=state.get("generations"),
        complete=complete,
        trials=trials,
        failed=dict(state.get("failed") or {}),
        running=int(state.get("running") or 0),
        best=state.get("best"),
        best_number=state.get("best_number"),
        best_parent=state.get("best_parent"),
        average=state.get("average"),
        evaluators=state.get("evaluators"),
        evaluated=evaluated,
        per_minute=per_minute,
        left=left,
        elapsed=max(0.0, float(end) - float(started)) if started and end else None,
        reason=state.get("reason"),
    )


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"
