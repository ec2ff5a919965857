"""A gene: one coordinate of the search, with the value that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

ChoiceValue: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Gene:
    """One coordinate of the flat, static search space.

    Attributes:
        name: Unique and stable, such as ``merge.math.weight.0``.
        low: Smallest value; 0 for choices.
        high: Largest value; the last index for choices.
        log: Whether the scale is logarithmic.
        step: Distance between values, or None for a continuous gene; 1 for choices.
        choices: The values that the integers 0, 1, ... stand for, or None.
    """

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    choices: tuple[ChoiceValue, ...] | None = None

    @property
    def integer(self) -> bool:
        """Whether the sampler sees an integer."""
        return self.choices is not None

    @property
    def single(self) -> bool:
        """Whether only one value is possible."""
        return self.low == self.high

    def decode(self, value: float) -> ChoiceValue:
        """Return what the recipe gets for the sampler's ``value``."""
        if self.choices is not None:
            return self.choices[round(value)]
        return float(value)

    def centre(self) -> float:
        """Return the middle of the range as the sampler sees it: geometric on a log scale, rounded to a step.

        For choices it is the middle index, rounded up, so that a switch [false, true] starts on.
        """
        if self.choices is not None:
            return float((int(self.high) + 1) // 2)
        middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
        if self.step is None:
            return middle
        return self.low + round((middle - self.low) / self.step) * self.step
