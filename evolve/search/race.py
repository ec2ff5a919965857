"""One round of a search whose candidates are scored on parts of the items: who is asked how much.

Everything here follows from the study and from recorded outcomes, so a round that was killed is gone through
again from its start, finds its parts on the disk, and tells the same. See docs/racing.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evolve.config.schema import RacingConfig
from evolve.score import racing, response
from evolve.types import Failed, Job, Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from evolve.config.schema import SearchConfig
    from evolve.search.base import Standing, Told
    from evolve.search.table import Table
    from evolve.types import Outcome, Recipe

    Array = npt.NDArray[np.float64]
    Settle = Callable[[Sequence[Job]], Iterator[tuple[Job, Outcome]]]

_HISTORY = 60
"""Most candidates of earlier generations that the estimator learns from."""


class Verdict(NamedTuple):
    """What a trial is to be told.

    Attributes:
        recipe: Hash of its recipe.
        value: For the sampler, on the scale of the objective; None for a failure.
        score: The objective on all items; None where only a part was asked.
    """

    recipe: str
    value: float | None
    score: float | None


@dataclass
class Entrant:
    """A candidate in the race.

    Attributes:
        recipe: What it is.
        asked: How many items, from the first on, it was asked in this race.
        verdict: Whether it is settled.
        failed: Whether it could not be scored.
    """

    recipe: Recipe
    asked: int = 0
    verdict: int = racing.OPEN
    failed: bool = False


class Race:
    """Asks the candidates of a round as many items as it takes.

    Args:
        table: What is known item by item. It learns what the race finds.
        config: The rules.
        population: Candidates per generation; half of them are selected.
        settle: Brings jobs to recorded outcomes and yields each as it comes.
        store: Records the outcome of a candidate on all items, put together from parts.
    """

    def __init__(
        self,
        table: Table,
        config: SearchConfig,
        *,
        population: int,
        settle: Settle,
        store: Callable[[Recipe, Scored], None],
    ) -> None:
        self._table = table
        self._config = config
        self._rules = config.racing or RacingConfig(first=1.0)
        self._population = population
        self._settle = settle
        self._store = store
        self._least = table.strata.smallest()

    def items(self, standing: Standing) -> int:
        """Return how many items the next round may ask of a candidate before the leader goes on."""
        total, growth = len(self._table), self._config.items_growth
        if growth is None:
            share = 1.0
            if self._config.estimator is not None and self._config.racing is None:
                share = self._config.estimator.anchors
            return max(self._least, math.ceil(share * total))
        if standing.items is None:
            return max(self._least, math.ceil(growth.first * total))
        if standing.before and len(standing.before) < self._population:
            return standing.items
        if self._reversed(standing.last, standing.items) <= growth.error:
            return standing.items
        return min(total, math.ceil(standing.items * growth.growth))

    def _reversed(self, generation: Sequence[Told], items: int) -> float:
        """Return the expected share of wrongly ordered pairs of a finished generation.

        Pairs with a candidate that the race settled count as right.
        """
        items = min(items, len(self._table))
        order = sorted(generation, key=lambda told: (-told.value, told.number))
        chosen = len(order) // 2
        better = [told for told in order[:chosen] if self._table.known(told.recipe) >= items]
        worse = [told for told in order[chosen:] if self._table.known(told.recipe) >= items]
        if not better or not worse or len(better) + len(worse) < 3:
            return 0.0
        values = [self._table.values(told.recipe, items) for told in (*better, *worse)]
        share = racing.reversed_share(values, self._table.strata, chosen=len(better))
        return share * len(better) * len(worse) / (chosen * (len(order) - chosen))

    def run(self, recipes: Sequence[Recipe], standing: Standing) -> dict[str, Verdict]:
        """Race the members of a round.

        Args:
            recipes: Their recipes; equal ones are one entrant.
            standing: What is older than the round, and how many items it may ask.

        Returns:
            Recipe's hash to what its trials are told.
        """
        entrants = [Entrant(recipe) for recipe in {recipe.hash: recipe for recipe in recipes}.values()]
        self._eliminate(entrants, standing, standing.items or len(self._table))
        while (leader := self._leader(entrants, standing)) is not None:
            self._challenge(leader, standing.incumbent)
            if not leader.failed:
                break
        return self._verdicts(entrants, standing)

    def _eliminate(self, entrants: Sequence[Entrant], standing: Standing, items: int) -> None:
        """Ask growing prefixes of those that are not settled, up to ``items``."""
        for size in self._sizes(items, race=len(entrants) > 1 and not standing.before):
            self._ask([entrant for entrant in entrants if entrant.verdict == racing.OPEN], size)
            live = [entrant for entrant in entrants if not entrant.failed]
            if size < items:
                self._compare(live)
            if all(entrant.verdict != racing.OPEN for entrant in live):
                return

    def _sizes(self, items: int, *, race: bool) -> list[int]:
        """Return the prefixes after which candidates are compared. Replacements do not race."""
        if self._config.racing is None or not race:
            return [items]
        first = self._rules.first * items / len(self._table)
        return racing.looks(len(self._table), first, self._rules.growth, least=self._least, most=items)

    def _compare(self, live: Sequence[Entrant]) -> None:
        rows = [self._table.values(entrant.recipe.hash, entrant.asked) for entrant in live]
        chosen = min(len(rows), self._population // 2)
        verdicts = [entrant.verdict for entrant in live]
        found = racing.settle(rows, verdicts, self._table.strata, chosen=chosen, error=self._rules.error)
        for entrant, verdict in zip(live, found, strict=True):
            entrant.verdict = verdict

    def _ask(self, entrants: Sequence[Entrant], size: int) -> None:
        """Ask the first ``size`` items; a candidate that fails on them has failed."""
        jobs = []
        asked = {entrant.recipe.hash: entrant for entrant in entrants if not entrant.failed}
        for entrant in asked.values():
            entrant.asked = size
            missing = self._table.missing(entrant.recipe.hash, size)
            if not missing:
                self._keep(entrant.recipe)  # a kill may have come after its last part
            else:
                everything = sum(len(keys) for _, keys in missing) == len(self._table)
                jobs.append(Job(entrant.recipe, items=() if everything else missing))
        for job, outcome in self._settle(jobs):
            if isinstance(outcome, Failed):
                asked[job.recipe.hash].failed = True
                continue
            self._table.add(job.recipe.hash, outcome.tasks, outcome.seconds)
            if job.items:
                self._keep(job.recipe)

    def _keep(self, recipe: Recipe) -> None:
        """Record the whole outcome of a candidate that has all items in parts."""
        if (whole := self._table.whole(recipe.hash)) is not None:
            self._store(recipe, whole)

    def _leader(self, entrants: Sequence[Entrant], standing: Standing) -> Entrant | None:
        live = [entrant for entrant in entrants if not entrant.failed]
        if not live:
            return None
        estimates = self._estimates(live, standing)
        return live[racing.order_of(estimates, [entrant.verdict for entrant in live])[0]]

    def _challenge(self, leader: Entrant, incumbent: str | None) -> None:
        """Ask the leader on until it has all items, or is hardly better than the best that had them."""
        for size in self._steps(leader.asked):
            if leader.failed:
                return
            if incumbent is not None and incumbent != leader.recipe.hash:
                own = self._table.values(leader.recipe.hash, leader.asked)
                best = self._table.values(incumbent, leader.asked)
                if racing.chance_to_lead(own, best, self._table.strata) < self._rules.error:
                    return
            self._ask([leader], size)

    def _steps(self, asked: int) -> list[int]:
        """Return the prefixes that follow after ``asked`` items, up to all."""
        total, growth = len(self._table), self._rules.growth
        sizes = racing.looks(total, asked * growth / total, growth, least=self._least)
        return [size for size in sizes if size > asked]

    def _verdicts(self, entrants: Sequence[Entrant], standing: Standing) -> dict[str, Verdict]:
        live = [entrant for entrant in entrants if not entrant.failed]
        estimates = self._estimates(live, standing)
        # A replacement is told its own estimate: the others of its generation were told theirs before.
        told = (
            estimates
            if standing.before
            else racing.told_values(estimates, [entrant.verdict for entrant in live])
        )
        found = {entrant.recipe.hash: Verdict(entrant.recipe.hash, None, None) for entrant in entrants}
        for entrant, value in zip(live, told, strict=True):
            whole = self._table.whole(entrant.recipe.hash)
            score = None if whole is None else whole.value
            found[entrant.recipe.hash] = Verdict(entrant.recipe.hash, value, score)
        return found

    def _estimates(self, live: Sequence[Entrant], standing: Standing) -> list[float]:
        """Return the estimated objective of each candidate on all items."""
        strata, config = self._table.strata, self._config.estimator
        rows = [self._table.values(entrant.recipe.hash, entrant.asked) for entrant in live]
        if config is None or all(len(row) == len(self._table) for row in rows):
            return [strata.estimate(row) for row in rows]
        names = {entrant.recipe.hash for entrant in live}
        history = [recipe for recipe in dict.fromkeys(standing.past) if recipe not in names][-_HISTORY:]
        answers = np.full((len(self._table.parents) + len(history) + len(rows), len(self._table)), math.nan)
        answers[: len(self._table.parents)] = self._table.parents
        for place, recipe in enumerate(history, start=len(self._table.parents)):
            answers[place] = self._table.values(recipe)
        for place, row in enumerate(rows, start=len(answers) - len(rows)):
            answers[place, : len(row)] = row
        model = response.fit(answers, dimensions=config.dimensions)
        predicted = model.predict()[-len(rows) :]
        weights = strata.weights(len(self._table))
        return [
            response.estimate(row, guess, weights, strata.weights(len(row)), correction=config.correction)
            for row, guess in zip(rows, predicted, strict=True)
        ]
