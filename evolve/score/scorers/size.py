"""The size of a model: what its files hold, each tensor once. The same in every split, without error."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from evolve.score.scorers.base import ScorerBlock, exact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.types import JsonValue, Split, TaskScore

_BILLION = 1e9
_METRICS = {"parameters": "billion_parameters", "bytes": "gigabytes"}
_BITS = {"float64": 64, "int64": 64, "float32": 32, "int32": 32, "bfloat16": 16, "float16": 16, "int16": 16}


class SizeBlock(ScorerBlock):
    """The size of the model, better when lower, in billions."""

    measure: Literal["parameters", "bytes"] = "parameters"
    """``parameters``, or ``bytes`` as exported."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return _METRICS[self.measure]


class Size:
    """See the text of the module."""

    block: ClassVar[type[ScorerBlock]] = SizeBlock

    def __init__(self, block: SizeBlock, config: ScoreConfig) -> None:
        self._block = block

    @property
    def sizes(self) -> Mapping[Split, int]:
        """One number a split."""
        return {"search": 1, "holdout": 1}

    def identity(self) -> JsonValue:
        """Return what is measured."""
        return self._block.measure

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Return the size of the model, in billions of parameters or of bytes."""
        specs = engine.model.specs.values()
        if self._block.measure == "parameters":
            total: float = sum(spec.numel for spec in specs)
        else:
            total = sum(spec.numel * _BITS.get(spec.dtype, 8) / 8 for spec in specs)
        return exact(self._block.metric_name, total / _BILLION, higher_is_better=False)
