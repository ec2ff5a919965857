"""How a method declares a parameter: the one place that knows its default and its ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Param:
    """A parameter of a merge method or a loss.

    Attributes:
        name: The name in a config: that of the field, such as mergekit's.
        default: Used where the config says nothing; None: the user must give it.
        low: Smallest value that has a meaning, or None for no bound.
        high: Largest value that has a meaning, or None for no bound.
        kind: ``float`` may be a range; ``bool`` and ``int`` may be choices.
        suggest: The range that a search usually wants.
        doc: One line.
    """

    name: str
    default: float | bool | None
    low: float | None = None
    high: float | None = None
    kind: Literal["float", "int", "bool"] = "float"
    suggest: tuple[float, float] | None = None
    doc: str = ""
