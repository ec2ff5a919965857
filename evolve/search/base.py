"""What a searcher is: it asks for rounds of candidates and is told their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from evolve.space.genes import Gene


Score: TypeAlias = 'float | Literal["value"] | None'
"""A trial's objective on all items; ``"value"``: it is what the sampler is told."""


@dataclass(frozen=True)
class Proposal:
    """A point of the space.

    Attributes:
        number: The trial's number in the study.
        values: Gene name to value, as the sampler sees it (a choice is its index).
    """

    number: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Told:
    """A complete trial, as the sampler sees it.

    Attributes:
        number: The trial's number.
        value: What the sampler was told.
        recipe: Hash of its recipe.
    """

    number: int
    value: float
    recipe: str


@dataclass(frozen=True)
class Standing:
    """Where a race stands that may be scored on parts of the items; the same after any kill.

    Attributes:
        members: All proposals of the round that was begun, told or not; empty before the first.
        items: What :meth:`Searcher.round` was given with that round.
        pending: Whether one of them is not told.
        before: Complete trials of the generation of that round that are older than the round.
        past: Hashes of the recipes of all complete trials older than the round, oldest first.
        last: Complete trials of the generation that was finished last.
        incumbent: Recipe of the best trial older than the round that was asked all items, or None.
    """

    members: tuple[Proposal, ...]
    items: int | None
    pending: bool
    before: tuple[Told, ...]
    past: tuple[str, ...]
    last: tuple[Told, ...]
    incumbent: str | None


@dataclass(frozen=True)
class Progress:
    """How far the study is.

    Attributes:
        complete: Trials with a value.
        failed: Trials that failed.
        generation: Index of the generation that the next ask belongs to, counted from 0.
        missing: Trials that the generation still lacks (asked or not, not complete).
        asked: Trials of the current generation that were asked, failed and running ones included.
        failed_here: Those of them that failed.
        running: Trials that were asked and not told.
        stale: Whole generations since the best value improved.
        best: The best objective on all items so far, or None.
        exhausted: Whether the sampler has nothing left to ask, and all that was asked is told.
    """

    complete: int
    failed: int
    generation: int
    missing: int
    asked: int
    running: int
    stale: int
    best: float | None
    exhausted: bool = False
    failed_here: int = 0


class Searcher(Protocol):
    """Generation-synchronous ask and tell over a study that is stored elsewhere.

    Trial 0 is the centre of the ranges, generation 0 on its own; a failed one is not replaced. A round is a
    batch of asks with no tell in between; it is finished when all of its trials are told. Killed at any
    instant and opened again on the same study, a searcher proposes the same points as one that was never
    killed.
    """

    def round(self, size: int, *, items: int | None = None) -> list[Proposal]:
        """Return the proposals that are asked and not told, after completing the round that was begun.

        A new round begins only when all earlier proposals are told. It has at most ``size`` proposals, and
        never more than the generation lacks. ``items`` is kept with it, for :meth:`standing`.
        """
        ...

    def standing(self) -> Standing:
        """Read from the study where the round stands that was begun last."""
        ...

    def tell(self, number: int, value: float | None, *, recipe: str, score: Score = "value") -> None:
        """Store the value of a trial (larger is better), or None for a failure, and its recipe's hash.

        ``score`` is the objective on all items where the value is something else, None where it is not known.

        Telling a finished trial again is ignored, so that reconciling after a kill is safe.
        """
        ...

    def progress(self) -> Progress:
        """Read from the study how far it is."""
        ...

    def best(self) -> Proposal | None:
        """Return the trial of the highest objective on all items, the earliest of equals, or None."""
        ...

    def top(self, count: int) -> list[Proposal]:
        """Return the ``count`` best complete trials of different recipes, the best first."""
        ...


SamplerFactory: TypeAlias = "Callable[[Sequence[Gene], int, int], BaseSampler]"
"""``make_sampler(genes, population, seed)``: a fresh Optuna sampler for one ask."""


@runtime_checkable
class FiniteFactory(Protocol):
    """A :data:`SamplerFactory` of a search that ends by itself.

    What is left follows from the trials of the study alone, so that a killed search ends where it would have.
    """

    population: int | None
    """Candidates per generation where the config says nothing; None: the usual number."""

    def __call__(self, genes: Sequence[Gene], population: int, seed: int) -> BaseSampler:
        """Return a fresh sampler for one ask."""
        ...

    def most(self, genes: Sequence[Gene]) -> int:
        """Return how many trials there can be. Raises ``UserError`` for a space that it cannot search."""
        ...

    def left(self, genes: Sequence[Gene], trials: Sequence[FrozenTrial]) -> int:
        """Return how many trials can be asked now, with no tell in between; 0: never again."""
        ...
