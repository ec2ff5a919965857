"""What a scorer is: it looks at the model that an engine holds, and says one number with its items.

Its block in a config is checked by its own schema. It is made once a study, which is also its check, and
scores every candidate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from evolve.config.values import Block
from evolve.errors import TaskError
from evolve.registry import SCORERS
from evolve.types import Role, TaskScore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.items import Item
    from evolve.types import JsonValue, Split

_EXACT = 4


class ScorerBlock(Block):
    """What every scorer's block has."""

    name: str | None = Field(default=None, min_length=1)
    """Name in tables, beside the names of the tasks; absent: the kind of scorer."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the objective; 0: only reported."""
    role: Role | None = None
    """``gain`` or ``retention``, as of a task."""

    models: ClassVar[tuple[str, ...]] = ()
    """Keys that may hold a name of the config's ``models``; it is replaced by what it stands for."""

    @property
    def metric_name(self) -> str:
        """Name of the metric. Each scorer's block says its own."""
        raise NotImplementedError(f"{type(self).__name__} lacks metric_name")

    def located(self) -> ScorerBlock:
        """Return the block with absolute paths: workers start in another folder."""
        return self


class ScorerProblem(TaskError):
    """What is wrong with a block, with the key that has to be mended."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class ModelScorer(Protocol):
    """One scorer with its block. Making it reads what it needs and raises ScorerProblem."""

    block: ClassVar[type[ScorerBlock]]

    def __init__(self, block: Any, config: ScoreConfig) -> None: ...

    @property
    def sizes(self) -> Mapping[Split, int]:
        """Number of items of each split."""
        ...

    def identity(self) -> JsonValue:
        """Return what decides the score besides the model; no path."""
        ...

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Score the model that ``engine`` holds.

        Raises:
            CandidateError: The number is NaN or infinite, or there is none.
        """
        ...


@runtime_checkable
class HoldsTexts(Protocol):
    """A scorer that measures on texts: nothing may be trained on them."""

    @property
    def texts(self) -> Mapping[Split, Sequence[Item]]:
        """What is asked about in each split; the documents are texts."""
        ...


def exact(metric: str, value: float, *, higher_is_better: bool) -> TaskScore:
    """Return a number that has no error: equal items, also in each half of them."""
    items = {f"exact-{number}": value for number in range(_EXACT)}
    return TaskScore(metric, value, 0.0, higher_is_better, items)


def located_scorers(config: ScoreConfig) -> list[dict[str, Any]]:
    """Return ``config.scorers`` with absolute paths."""
    return [
        {kind: SCORERS.load(kind).block.model_validate(raw).located().model_dump(mode="json")}
        for entry in config.scorers
        for kind, raw in entry.items()
    ]


def make_scorers(
    config: ScoreConfig,
) -> tuple[dict[str, ModelScorer], list[tuple[tuple[str | int, ...], str]]]:
    """Return name to scorer, and what is wrong as ``(path below score, message)``."""
    found: dict[str, ModelScorer] = {}
    problems: list[tuple[tuple[str | int, ...], str]] = []
    for index, entry in enumerate(config.scorers):
        [(kind, raw)] = entry.items()
        factory = SCORERS.load(kind)
        block = factory.block.model_validate(raw)
        try:
            found[block.name or kind] = factory(block, config)
        except ScorerProblem as problem:
            problems.append((("scorers", index, kind, problem.key), str(problem)))
    return found, problems
