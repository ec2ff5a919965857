"""A searcher over an Optuna study, which can be killed at any instant and gone on with.

What makes that exact: a sampler is made anew before each ask, seeded by the study's seed and the trial's
number; a round is written into the study before its first ask; trials of a round are all asked before one of
them is told. So an ask depends on nothing but the study and the seed, and a trial whose asking was
interrupted is asked on to the same values.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evolve.errors import RunError
from evolve.search.base import FiniteFactory, Progress, Proposal, Standing, Told
from evolve.search.declared import suggest
from evolve.store.study import RECIPE, SCORE, score_of, storage_errors
from evolve.types import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from evolve.search.base import SamplerFactory, Score
    from evolve.space.genes import Gene

logger = logging.getLogger(__name__)

_ROUND = "round"
_SEARCHER = "searcher"


class StudySearcher:
    """Implements :class:`evolve.search.base.Searcher`.

    Args:
        study: The study. Nobody else writes it.
        genes: The whole space.
        make_sampler: Makes the sampler of one ask.
        population: Candidates per generation.
        seed: Seed of the study.
        centre: Gene name to the value that trial 0 gets.

    Raises:
        UserError: The sampler cannot search this space.
    """

    def __init__(
        self,
        study: Study,
        genes: Sequence[Gene],
        make_sampler: SamplerFactory,
        *,
        population: int,
        seed: int,
        centre: Mapping[str, float],
    ) -> None:
        self._study = study
        self._genes = tuple(genes)
        self._make_sampler = make_sampler
        self._population = population
        self._seed = seed
        self._centre = {
            gene.name: round(centre[gene.name]) if gene.integer else float(centre[gene.name])
            for gene in self._genes
        }
        self._where = f"study {study.study_name}"
        self._whole = False
        make_sampler(self._genes, population, seed_of_ask(seed, 0))

    def round(self, size: int, *, items: int | None = None) -> list[Proposal]:
        """Return the proposals that are asked and not told, after completing the round that was begun.

        A new round begins only when all earlier proposals are told. It is cut to what the generation lacks.
        """
        with storage_errors(self._where):
            self._complete_round()
            pending = self._pending()
            if pending:
                return pending
            size = int(min(size, self.progress().missing, self._left(self._trials())))
            if size > 0:
                self._begin_round(size, items)
                self._complete_round()
            return self._pending()

    def standing(self) -> Standing:
        """Read from the study where the round stands that was begun last."""
        with storage_errors(self._where):
            self._complete_round()
            return standing_of(self._trials(), self._population, self._study.user_attrs.get(_ROUND))

    def tell(self, number: int, value: float | None, *, recipe: str, score: Score = "value") -> None:
        """Store the value of a trial, or None for a failure, and its recipe's hash.

        Telling a finished trial again is ignored. A value that is not finite counts as a failure.
        """
        import optuna

        with storage_errors(self._where):
            self._complete_round()
            trials = self._trials()
            if number >= len(trials):
                raise ValueError(f"trial {number} was never asked")
            if trials[number].state.is_finished():
                return
            if value is not None and not math.isfinite(value):
                logger.warning("trial %d: the value %r is not finite; it counts as failed", number, value)
                value = None
            # Before the state, since a finished trial takes no attributes.
            trial = optuna.trial.Trial(self._study, trials[number]._trial_id)
            if score != "value":
                trial.set_user_attr(SCORE, score)
            trial.set_user_attr(RECIPE, recipe)
            if value is None:
                self._study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            else:
                self._study.tell(number, float(value), skip_if_finished=True)

    def progress(self) -> Progress:
        """Read from the study how far it is."""
        with storage_errors(self._where):
            trials = self._trials()
            progress = progress_of(trials, self._population)
            exhausted = not progress.running and self._left(trials) <= 0
            return replace(progress, exhausted=exhausted)

    def best(self) -> Proposal | None:
        """Return the trial of the highest objective on all items, the earliest of equals, or None."""
        with storage_errors(self._where):
            best = _best(self._trials())
        return _proposal(best) if best is not None else None

    def top(self, count: int) -> list[Proposal]:
        """Return the ``count`` best trials of different recipes on all items, the best first.

        Of equals the earlier one comes first.
        """
        with storage_errors(self._where):
            trials = self._trials()
        scores = {trial.number: score for trial in trials if (score := score_of(trial)) is not None}
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        distinct: dict[str, FrozenTrial] = {}
        for trial in (trials[number] for number in ranked):
            distinct.setdefault(trial.user_attrs.get(RECIPE) or str(trial.number), trial)
        return [_proposal(trial) for trial in list(distinct.values())[:count]]

    def _left(self, trials: Sequence[FrozenTrial]) -> float:
        """Return how many trials can be asked without a tell."""
        if isinstance(self._make_sampler, FiniteFactory):
            return self._make_sampler.left(self._genes, trials)
        return math.inf

    def _trials(self) -> list[FrozenTrial]:
        # Not copied: a study of thousands of trials is read several times per candidate.
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return trials

    def _pending(self) -> list[Proposal]:
        return [_proposal(trial) for trial in self._trials() if trial.state.name == "RUNNING"]

    def _begin_round(self, size: int, items: int | None) -> None:
        """Write down that a round begins, so that it is completed whenever we are killed in it."""
        first = sum(trial.state.name != "WAITING" for trial in self._trials())
        if first == 0:
            self._study.set_user_attr(_SEARCHER, self._identity())
        self._whole = False
        begun = {"first": first, "size": size}
        self._study.set_user_attr(_ROUND, begun if items is None else {**begun, "items": items})

    def _complete_round(self) -> None:
        """Ask what the begun round lacks: values of a trial that was being asked, then whole trials."""
        if self._whole:
            return
        attributes = self._study.user_attrs
        if attributes.get(_SEARCHER, self._identity()) != self._identity():
            raise RunError(
                f"{self._where}: made with another space, population, seed or sampler, which cannot be mixed "
                "in one study. Start a new run under another name."
            )
        begun = attributes.get(_ROUND)
        if begun is not None:
            trials = self._trials()
            for trial in trials:
                if trial.state.name == "RUNNING" and len(trial.params) < len(self._genes):
                    self._adopt(trial)
            asked = sum(trial.state.name != "WAITING" for trial in trials)
            for number in range(asked, begun["first"] + begun["size"]):
                self._ask(number)
        self._whole = True

    def _ask(self, number: int) -> None:
        if number == 0 and not self._trials():
            self._study.enqueue_trial(self._centre)
        self._study.sampler = self._make_sampler(
            self._genes, self._population, seed_of_ask(self._seed, number)
        )
        trial = self._study.ask()
        if trial.number != number:
            raise RunError(
                f"{self._where}: another process asked for trial {trial.number - 1}. "
                "Only one may write a study: stop the other one."
            )
        for gene in self._genes:
            suggest(trial, gene)

    def _adopt(self, frozen: FrozenTrial) -> None:
        """Ask a trial on whose asking was interrupted."""
        import optuna

        self._study.sampler = self._make_sampler(
            self._genes, self._population, seed_of_ask(self._seed, frozen.number)
        )
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        for gene in self._genes:
            suggest(trial, gene)

    def _identity(self) -> dict[str, Any]:
        return {
            "space": content_hash([gene.as_plain() for gene in self._genes]),
            "population": self._population,
            "seed": self._seed,
            "sampler": getattr(self._make_sampler, "__module__", ""),
        }


def seed_of_ask(seed: int, number: int) -> int:
    """Return the seed of the sampler that asks for a trial, below 2**32."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def progress_of(trials: Sequence[FrozenTrial], population: int) -> Progress:
    """Count trials in the order of their numbers: trial 0 alone, then generations of ``population`` values.

    A failed trial 0 is not replaced; other failures are, within their generation.
    """
    counts = {"COMPLETE": 0, "FAIL": 0, "RUNNING": 0}
    best: float | None = None
    generation = done = asked = failed = best_generation = 0
    for trial in trials:
        state = trial.state.name
        if state not in counts:
            continue
        counts[state] += 1
        asked += 1
        failed += state == "FAIL"
        if state == "COMPLETE":
            done += 1
            score = score_of(trial)
            if score is not None and (best is None or score > best):
                best, best_generation = score, generation
        if (generation == 0 and state != "RUNNING") or (generation > 0 and done == population):
            generation, done, asked, failed = generation + 1, 0, 0, 0
    return Progress(
        complete=counts["COMPLETE"],
        failed=counts["FAIL"],
        generation=generation,
        missing=(population if generation else 1) - done,
        asked=asked,
        running=counts["RUNNING"],
        stale=0 if best is None else max(0, generation - best_generation - 1),
        best=best,
        failed_here=failed,
    )


def standing_of(trials: Sequence[FrozenTrial], population: int, begun: Mapping[str, int] | None) -> Standing:
    """Return where a round stands: see :class:`Standing`."""
    begun = begun or {"first": 0, "size": 0}
    first, end = begun["first"], begun["first"] + begun["size"]
    asked = [trial for trial in trials if trial.state.name in ("COMPLETE", "FAIL", "RUNNING")]
    members = [trial for trial in asked if first <= trial.number < end]
    older = [trial for trial in asked if trial.number < first]
    complete = [trial for trial in asked if trial.state.name == "COMPLETE"]
    # Trial 0 is a generation of its own, whatever came of it; then every ``population`` complete ones.
    in_order = [_told(trial) for trial in complete if trial.number > 0]
    done = sum(trial.number > 0 and trial.state.name == "COMPLETE" for trial in older)
    whole = len(in_order) // population * population
    best = _best(older)
    return Standing(
        members=tuple(_proposal(trial) for trial in members),
        items=begun.get("items"),
        pending=any(trial.state.name == "RUNNING" for trial in members),
        before=tuple(in_order[done // population * population : done]),
        past=tuple(_told(trial).recipe for trial in older if trial.state.name == "COMPLETE"),
        last=tuple(in_order[max(0, whole - population) : whole]),
        incumbent=None if best is None else _told(best).recipe,
    )


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    scores = {trial.number: score for trial in trials if (score := score_of(trial)) is not None}
    return max(
        (trial for trial in trials if trial.number in scores),
        key=lambda trial: scores[trial.number],
        default=None,
    )


def _told(trial: FrozenTrial) -> Told:
    return Told(trial.number, float(trial.value), trial.user_attrs.get(RECIPE, ""))


def _proposal(trial: FrozenTrial) -> Proposal:
    return Proposal(trial.number, {name: float(value) for name, value in trial.params.items()})
