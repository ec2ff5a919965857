"""Values that may be searched: a number, or a range where a number may stand."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Block(BaseModel):
    """Base of every mapping in a config: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Range(Block):
    """An interval to search.

    In a merge parameter, ``knots: k`` stands for k numbers that are interpolated over the depth of the
    model (a mergekit gradient).
    """

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Search on a logarithmic scale; needs low > 0."""
    step: float | None = Field(default=None, gt=0)
    """Only multiples of it, counted from low."""
    knots: int | None = Field(default=None, ge=1)
    """Number of points over the depth of the model, each a gene of its own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be smaller than high, got low {self.low:g}, high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low > 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self


class Choices(Block):
    """A list of values to choose from. Order numbers by size: the search treats them as neighbours."""

    choices: list[bool | int | float | str] = Field(min_length=1)
    """The values, at least one, all different."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({(type(value), value) for value in self.choices}) != len(self.choices):
            raise ValueError("choices must differ from each other")
        return self


Number: TypeAlias = int | float
SearchNumber: TypeAlias = Number | Range | Choices
SearchSwitch: TypeAlias = bool | Choices


class Filtered(Block):
    """A value for the tensors whose name contains ``filter`` (``*`` or absent: for all others)."""

    filter: str | None = None
    """Part of a tensor's name, such as ``self_attn``; the first match in the list wins."""
    value: Annotated[bool | SearchNumber | list[SearchNumber], Field(union_mode="smart")]
    """A number, a range, or a gradient."""


Parameter: TypeAlias = bool | SearchNumber | list[SearchNumber] | list[Filtered]
"""A merge parameter: number, range, gradient over depth, or a list of filters."""


class StageBlock(Block):
    """The keys that every stage has."""

    name: str | None = None
    """Name of the output, for later stages."""
    enabled: SearchSwitch = True
    """Whether the stage runs. ``{choices: [false, true]}`` lets the search decide."""
    seed: int | None = None
    """Seed of the stage's own randomness; absent: the seed of the search."""

    def problems(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Return what the types cannot say, as ``(path inside the block, message with the mend)``.

        Such as a parameter that the chosen method does not have. Called after validation; reads no files.
        """
        return []
