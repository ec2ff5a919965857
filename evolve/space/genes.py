"""A gene: one coordinate of the search, with the value that it stands for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, TypeAlias

ChoiceValue: TypeAlias = bool | int | float | str


def on_grid(low: float, step: float, count: int) -> float:
    """Return ``low + count * step`` in decimal: 0.1 + 2 * 0.1 is 0.3, and one value has one hash."""
    return float(Decimal(repr(low)) + count * Decimal(repr(step)))


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
        off_below: Values under this stand for 0, or None. The sampler sees the whole range.
    """

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    choices: tuple[ChoiceValue, ...] | None = None
    off_below: float | None = None

    def as_plain(self) -> dict[str, Any]:
        """Return plain data that is hashed; a key that came later is in it only where it is used."""
        data = asdict(self)
        if self.off_below is None:
            del data["off_below"]
        return data

    @property
    def integer(self) -> bool:
        """Whether the sampler sees an integer."""
        return self.choices is not None

    @property
    def single(self) -> bool:
        """Whether only one value is possible."""
        return self.low == self.high

    def decode(self, value: float) -> ChoiceValue:
        """Return what the recipe gets for the sampler's ``value``.

        Raises:
            ValueError: The value is no number, or lies outside the range by more than rounding.
        """
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        if not self.low - slack <= value <= self.high + slack:
            raise ValueError(f"{self.name}: {value} lies outside of {self.low:g} to {self.high:g}")
        value = min(max(float(value), self.low), self.high)
        if self.choices is not None:
            return self.choices[round(value)]
        found = value if self.step is None else self._nearest(value, self.step)
        return 0.0 if self.off_below is not None and found < self.off_below else found

    def _nearest(self, value: float, step: float) -> float:
        return on_grid(self.low, step, round((value - self.low) / step))

    def centre(self) -> float:
        """Return the middle of the range as the sampler sees it: geometric on a log scale, rounded to a step.

        For choices it is the middle index, rounded up, so that a switch [false, true] starts on.
        """
        if self.choices is not None:
            return float((int(self.high) + 1) // 2)
        # Roots and halves before the product and the sum, which may be too large or too small for a float.
        middle = math.sqrt(self.low) * math.sqrt(self.high) if self.log else self.low / 2 + self.high / 2
        return middle if self.step is None else self._nearest(middle, self.step)
