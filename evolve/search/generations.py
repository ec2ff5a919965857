"""The search, generation by generation: ask, evaluate side by side, record, tell.

An outcome is written to the run's folder before the study is told of it, so that a kill at any instant
leaves a state from which the same steps follow.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from evolve.errors import Interrupted, RunError
from evolve.score.choice import winning
from evolve.score.objective import needs_parents, valued
from evolve.search.race import Race
from evolve.search.table import Table
from evolve.space import variants
from evolve.types import Failed, Job, Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from evolve.config.schema import ScoreConfig, SearchConfig
    from evolve.score.objective import Parents
    from evolve.search.base import Progress, Proposal, Searcher
    from evolve.space.space import Space
    from evolve.store.rundir import RunDir
    from evolve.types import Outcome, Recipe, Split

logger = logging.getLogger(__name__)

AVERAGE = "average"
"""Name of the plain average among the baselines."""


class Evaluated(Protocol):
    """What comes back for a job."""

    @property
    def job(self) -> Job:
        """The job."""
        ...

    @property
    def outcome(self) -> Outcome:
        """What came of it."""
        ...

    @property
    def attempts(self) -> int:
        """How often it was started."""
        ...


Evaluate: TypeAlias = "Callable[[Sequence[Job], Callable[[], bool]], Iterator[Evaluated]]"
"""Evaluate jobs side by side; raise ``Interrupted`` when the callable says so."""


@dataclass(frozen=True)
class Plan:
    """What a search is to do; the same after every start.

    Attributes:
        config: Stop rules.
        population: Candidates per generation.
        contents: Model name to content hash.
        baselines: Name to recipe, scored before the first generation and outside the study.
        score_key: Hash of everything that decides a score.
        holdout: Whether there are holdout items.
        score: Tasks and objective, also for candidates that are scored on parts of the items; None: a value
            is what the evaluator says.
    """

    config: SearchConfig
    population: int
    contents: Mapping[str, str]
    baselines: Mapping[str, Recipe]
    score_key: str
    holdout: bool
    score: ScoreConfig | None = None


class Generations:
    """A search over a space. Implements the engine's ``Loop``."""

    def __init__(self, run: RunDir, space: Space, searcher: Searcher, plan: Plan, evaluate: Evaluate) -> None:
        self._run = run
        self._space = space
        self._searcher = searcher
        self._plan = plan
        self._evaluate = evaluate
        self._began = time.monotonic()
        self._started = False
        self._failed: Counter[str] = Counter()
        self._parents: dict[Split, Parents] = {}
        self._race: Race | None = None
        self._forgiven = (0, 0)

    def step(self) -> bool:
        """Advance by one generation; the baselines come first, the holdout last.

        Returns:
            True when the search is over.

        Raises:
            Interrupted: A stop was requested; the same step goes on after the next start.
            RunError: A generation failed too often.
        """
        try:
            if not self._started:
                self._start()
                self._started = True
                return False
            reason = self._reason_to_stop()
            if reason is None:
                self._generation()
                return False
        except Interrupted:
            if not self._out_of_time():
                self._run.write_state(reason="interrupted", running=0)
                raise
            reason = "timeout"
        self._finish(reason)
        return True

    def close(self) -> None:
        """Nothing is held."""

    def _start(self) -> None:
        """Score the baselines and the centre of the ranges together, or one after the other.

        The value of the centre may depend on the scores of the parents.
        """
        self._run.write_state(phase="baselines", reason=None)
        for record in self._run.records():
            if record.score_key == self._plan.score_key and isinstance(record.outcome, Failed):
                self._failed[record.outcome.kind] += 1
        jobs = [Job(recipe) for recipe in self._plan.baselines.values()]
        progress = self._searcher.progress()
        self._forgiven = progress.generation, progress.failed_here
        proposals = self._searcher.round(1) if progress.generation == 0 else []
        if self._needs_parents:
            self._settle([], jobs)
            jobs = []
        self._settle(proposals, jobs)
        values = {name: self._value_of(name, recipe) for name, recipe in self._plan.baselines.items()}
        parents = [value for name, value in values.items() if name != AVERAGE and value is not None]
        self._run.write_state(best_parent=max(parents), average=values.get(AVERAGE))

    def _value_of(self, name: str, recipe: Recipe) -> float | None:
        """Return a baseline's value: without a parent's no result of the search can be judged."""
        outcome = self._recorded(Job(recipe))
        if isinstance(outcome, Scored):
            return outcome.value
        cause = f"{outcome.kind}: {outcome.message}" if outcome else "no outcome"
        if name == AVERAGE and recipe.pipeline:
            logger.warning("the plain average cannot be scored, and is missing in the report: %s", cause)
            return None
        raise RunError(
            f"the baseline {name!r} cannot be scored: {cause}. Mend the cause; the same command tries again."
        )

    def _generation(self) -> None:
        """Complete one generation, failed candidates replaced."""
        generation = self._searcher.progress().generation
        while True:
            progress = self._searcher.progress()
            missing = min(progress.missing, self._plan.config.trials - progress.complete)
            if progress.generation != generation or missing <= 0 or progress.exhausted:
                return
            self._report(progress)
            # Failures of an earlier start do not count: their cause may be gone.
            since, failures = self._forgiven
            asked = progress.asked - (failures if since == generation else 0)
            budget = 2 * self._plan.population - asked + progress.running
            if budget <= 0:
                raise RunError(self._too_many_failures(progress))
            if self._plan.config.partial:
                self._race_round(min(missing, budget))
            else:
                self._settle(self._searcher.round(min(missing, budget)), [])

    def _race_round(self, size: int) -> None:
        """Bring a round to its end with candidates that are scored on parts of the items."""
        race = self._race = self._race or self._open_race()
        standing = self._searcher.standing()
        items = standing.items if standing.pending else race.items(standing)
        pending = {proposal.number for proposal in self._searcher.round(size, items=items)}
        standing = self._searcher.standing()
        recipes = {
            proposal.number: self._space.recipe(proposal.values, self._plan.contents)
            for proposal in standing.members
        }
        verdicts = race.run(list(recipes.values()), standing)
        for number, recipe in recipes.items():
            if number in pending:
                found = verdicts[recipe.hash]
                self._searcher.tell(number, found.value, recipe=recipe.hash, score=found.score)
        self._report(self._searcher.progress(), running=0)

    def _open_race(self) -> Race:
        """Return the rules of the race, with all that is recorded of the run's candidates."""
        if self._plan.score is None:
            raise ValueError("racing needs the plan's score")
        racing, key = self._plan.config.racing, self._plan.score_key
        outcomes = [self._run.outcome(Job(recipe), key) for recipe in self._plan.baselines.values()]
        table = Table(
            [outcome for outcome in outcomes if isinstance(outcome, Scored)],
            self._plan.score,
            seed=self._plan.config.seed,
            discriminative=racing is not None and racing.order == "discriminative",
        )
        for record in [*self._run.records(), *self._run.parts()]:
            if record.score_key == key and record.split == "search" and isinstance(record.outcome, Scored):
                table.add(record.recipe.hash, record.outcome.tasks, record.outcome.seconds)

        def store(recipe: Recipe, whole: Scored) -> None:
            if self._run.outcome(Job(recipe), key) is None:
                self._run.record(Job(recipe), whole, score_key=key, attempts=1)

        return Race(
            table, self._plan.config, population=self._plan.population, settle=self._parts, store=store
        )

    def _parts(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Bring parts of candidates to their outcomes. A failure is recorded as that of the candidate."""
        open_jobs = []
        for job in jobs:
            outcome = self._known(Job(job.recipe))
            if isinstance(outcome, Failed):
                yield job, outcome
            else:
                open_jobs.append(job)
        self._run.write_state(running=len(open_jobs))
        for result in self._evaluate(open_jobs, self._should_stop):
            failed = isinstance(result.outcome, Failed)
            self._record(result, Job(result.job.recipe) if failed else result.job)
            yield result.job, result.outcome

    def _settle(self, proposals: Sequence[Proposal], extra: Sequence[Job]) -> None:
        """Bring proposals and further jobs to their outcomes, each distinct recipe evaluated once.

        A further job that has failed before is tried again: nothing can be judged without it.
        """
        waiting: dict[str, tuple[Job, list[int]]] = {}
        for proposal in proposals:
            job = Job(self._space.recipe(proposal.values, self._plan.contents))
            waiting.setdefault(job.key, (job, []))[1].append(proposal.number)
        for job in extra:
            waiting.setdefault(job.key, (job, []))
        again = {job.key for job in extra}
        open_jobs = []
        for key, (job, numbers) in list(waiting.items()):
            outcome = self._known(job)
            if isinstance(outcome, Failed) and key in again:
                outcome = None
            if outcome is None:
                open_jobs.append(job)
            else:
                self._tell(job, outcome, numbers)
                del waiting[key]
        self._run.write_state(running=len(open_jobs))
        for result in self._evaluate(open_jobs, self._should_stop):
            outcome = self._record(result)
            job, numbers = waiting.pop(result.job.key)
            self._tell(job, outcome, numbers)
            self._report(self._searcher.progress(), running=len(waiting))

    def _known(self, job: Job) -> Outcome | None:
        """Return the recorded outcome of a job, unless a second try may do better."""
        outcome = self._recorded(job)
        return None if isinstance(outcome, Failed) and outcome.retryable else outcome

    def _recorded(self, job: Job) -> Outcome | None:
        outcome = self._run.outcome(job, self._plan.score_key)
        return None if outcome is None else self._valued(outcome, job.split)

    @property
    def _needs_parents(self) -> bool:
        return self._plan.score is not None and needs_parents(self._plan.score)

    def _valued(self, outcome: Outcome, split: Split) -> Outcome:
        """Return an outcome with its value: a function of its tasks and of the parents' records alone.

        So it is the same after a kill, whatever an evaluator or an earlier start wrote. Before all parents
        are recorded the outcome stays as it is.
        """
        parents = self._parents_on(split) if self._needs_parents else None
        return valued(outcome, self._plan.score, parents)

    def _parents_on(self, split: Split) -> Parents | None:
        """Return name to the scores of each parent on a split; None while one is not scored."""
        if split not in self._parents:
            found = {}
            for name, recipe in self._plan.baselines.items():
                if name == AVERAGE and recipe.pipeline:
                    continue
                outcome = self._run.outcome(Job(recipe, split), self._plan.score_key)
                if not isinstance(outcome, Scored):
                    return None
                found[name] = outcome.tasks
            self._parents[split] = found
        return self._parents[split]

    def _tell(self, job: Job, outcome: Outcome, numbers: Sequence[int]) -> None:
        value = outcome.value if isinstance(outcome, Scored) else None
        for number in numbers:
            self._searcher.tell(number, value, recipe=job.recipe.hash)

    def _reason_to_stop(self) -> str | None:
        config = self._plan.config
        progress = self._searcher.progress()
        if progress.complete >= config.trials:
            return "trials"
        if progress.exhausted:
            return "exhausted"
        if config.target is not None and progress.best is not None and progress.best >= config.target:
            return "target"
        if config.patience is not None and progress.stale >= config.patience:
            return "patience"
        return "timeout" if self._out_of_time() else None

    def _out_of_time(self) -> bool:
        limit = self._plan.config.timeout
        return limit is not None and time.monotonic() - self._began > limit

    def _should_stop(self) -> bool:
        return self._run.stop_requested() or self._out_of_time()

    def _finish(self, reason: str) -> None:
        """Score the best few candidates and the baselines on the holdout, then variants of the winner."""
        self._run.write_state(phase="holdout", reason=reason, running=0)
        if self._plan.holdout:
            count = 1 if self._plan.score is None else self._plan.score.holdout.top
            best = [self._space.recipe(one.values, self._plan.contents) for one in self._searcher.top(count)]
            baselines = list(self._plan.baselines.values())
            self._began = time.monotonic()
            # The parents first, where the others' values need them.
            for recipes in [baselines, best] if self._needs_parents else [[*best, *baselines]]:
                self._settle_holdout(recipes)
            self._settle_holdout(self._variants(best))
        self._run.write_state(phase="export", running=0)

    def _variants(self, best: Sequence[Recipe]) -> list[Recipe]:
        """Return the recipe that won the last choice with other seeds, and without each of its stages."""
        score = self._plan.score
        scored = [
            (recipe, outcome.tasks)
            for recipe in best
            if isinstance(outcome := self._recorded(Job(recipe, "holdout")), Scored)
        ]
        if score is None or not scored:
            return []
        parents = self._parents_on("holdout") if self._needs_parents else None
        winner, _ = scored[winning([tasks for _, tasks in scored], score, parents)]
        return variants.all_of(winner, score.holdout.seeds, without=score.holdout.ablations)

    def _settle_holdout(self, recipes: Sequence[Recipe]) -> None:
        unique = {job.key: job for job in (Job(recipe, "holdout") for recipe in recipes)}
        todo = [job for job in unique.values() if self._known(job) is None]
        self._run.write_state(running=len(todo))
        for result in self._evaluate(todo, self._run.stop_requested):
            self._record(result)

    def _record(self, result: Evaluated, job: Job | None = None) -> Outcome:
        """Write an outcome with its value, for its own job or another, and return it."""
        job = job or result.job
        outcome = result.outcome if job.items else self._valued(result.outcome, job.split)
        self._run.record(job, outcome, score_key=self._plan.score_key, attempts=result.attempts)
        if isinstance(outcome, Failed):
            self._failed[outcome.kind] += 1
        return outcome

    def _report(self, progress: Progress, running: int | None = None) -> None:
        changes: dict[str, object] = {
            "phase": "search",
            "generation": progress.generation,
            "complete": progress.complete,
            "failed": dict(self._failed),
            "best": progress.best,
        }
        if running is not None:
            changes["running"] = running
        self._run.write_state(**changes)

    def _too_many_failures(self, progress: Progress) -> str:
        lines = [
            f"{record.recipe.hash}: {record.outcome.kind}: {record.outcome.message}"
            for record in self._run.records()
            if isinstance(record.outcome, Failed)
        ]
        head = f"generation {progress.generation} failed: {progress.asked} candidates asked, "
        head += f"{progress.missing} still missing. Mend the cause; the same command goes on. The failures:"
        return "\n  ".join([head, *lines[-10:]])
