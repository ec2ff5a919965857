"""How long the model takes to answer on the engine that scores it: one prompt, so many new tokens.

Measured anew for every split, after one answer that does not count. Items are the repetitions, so the
interval says how steady the machine was. On a machine with other work it is noise: give it little weight.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from evolve.score.scorers.base import ScorerBlock
from evolve.types import TaskScore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.types import JsonValue, Split

METRIC = "seconds"


class LatencyBlock(ScorerBlock):
    """Seconds for one answer, better when lower."""

    prompt_tokens: int = Field(default=64, ge=1)
    """Length of the prompt."""
    new_tokens: int = Field(default=16, ge=1)
    """Length of the answer."""
    repeats: int = Field(default=8, ge=4)
    """Number of answers that are timed."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return METRIC


class Latency:
    """See the text of the module."""

    block: ClassVar[type[ScorerBlock]] = LatencyBlock

    def __init__(self, block: LatencyBlock, config: ScoreConfig) -> None:
        self._block = block

    @property
    def sizes(self) -> Mapping[Split, int]:
        """The repetitions."""
        return {"search": self._block.repeats, "holdout": self._block.repeats}

    def identity(self) -> JsonValue:
        """Return what is measured; the machine is not in it."""
        return [self._block.prompt_tokens, self._block.new_tokens, self._block.repeats]

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Return the mean seconds of an answer."""
        from evolve.score.metrics import standard_error

        block = self._block
        values = [_seconds(engine, block.prompt_tokens, block.new_tokens) for _ in range(block.repeats + 1)][
            1:
        ]
        return TaskScore(
            metric=METRIC,
            value=sum(values) / len(values),
            stderr=standard_error(values),
            higher_is_better=False,
            items={f"run-{number}": value for number, value in enumerate(values)},
        )


def _seconds(engine: Engine, prompt: int, new: int) -> float:
    size = max(2, int(engine.model.config.get("vocab_size", 2)))
    tokens = [1 + 7 * number % (size - 1) for number in range(prompt)]
    began = time.perf_counter()
    engine.lm.write_tokens(tokens, new)
    return time.perf_counter() - began
