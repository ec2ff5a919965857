"""Values that may be searched: a number, or a range where a number may stand.

A mapping in a config is a :class:`Block`. Types are strict: text is no number, ``yes`` is no boolean, 1 is no
``true``. The unions below choose their member by the shape of the value, so that an error speaks of the one
member that was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

MOST_VALUES = 1000
"""Most values of a whole-number range: each is a choice of its gene."""


class Block(BaseModel):
    """Base of every mapping in a config: frozen and strict, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
    """Only low, low + step, low + 2 step and so on."""
    knots: int | None = Field(default=None, ge=1, le=10_000)
    """Number of points over the depth of the model, each a gene of its own."""
    off_below: float | None = None
    """Values under this mean 0: what the number belongs to is off, a switch without a gene of its own."""

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value that it can give; 0 is one where it can be off."""
        if self.off_below is None:
            return self.low, self.high
        return min(0.0, self.off_below), max(0.0, self.high)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be smaller than high, got low {self.low:g} and high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low > 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other: remove one of them")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(
                f"step {self.step:g} is larger than the range from {self.low:g} to {self.high:g}"
            )
        if self.off_below is not None and not self.low < self.off_below < self.high:
            raise ValueError(
                f"off_below must lie between {self.low:g} and {self.high:g}, or it is never or always off, "
                f"got {self.off_below:g}"
            )
        return self


class IntRange(Range):
    """A range of whole numbers, with ``step`` 1 where none is given. Both ends can be reached."""

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        for key in ("low", "high", "step"):
            value = getattr(self, key)
            if value is not None and value != int(value):
                raise ValueError(f"{key} must be a whole number here, got {value:g}")
        if self.log:
            raise ValueError("whole numbers have no log range: list them, such as {choices: [8, 32, 128]}")
        if self.off_below is not None:
            raise ValueError("whole numbers have no off_below: list them, such as {choices: [0, 8, 16]}")
        if len(self.values) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} whole numbers: give a larger step")
        return self

    @property
    def values(self) -> range:
        """Every value of the range."""
        return range(int(self.low), int(self.high) + 1, int(self.step or 1))


class Choices(Block):
    """A list of values to choose from. Order numbers by size: the search treats them as neighbours."""

    choices: list[bool | int | float | str] = Field(min_length=1, max_length=MOST_VALUES)
    """The values, at least one, all different."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # bool is a subclass of int, and 1 and 1.0 have the same effect.
        if len({(isinstance(value, bool), value) for value in self.choices}) != len(self.choices):
            raise ValueError("choices must differ from each other")
        return self


def _shape(value: Any) -> str | None:
    """Return the tag of the member of a union that ``value`` is meant to be, or None."""
    if isinstance(value, bool):
        return "switch"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, Choices) or (isinstance(value, Mapping) and "choices" in value):
        return "choices"
    if isinstance(value, Range | Mapping):
        return "range"
    if isinstance(value, list):
        filters = any(isinstance(item, Filtered) or _looks_filtered(item) for item in value)
        return "filters" if filters else "gradient"
    return None


def _looks_filtered(item: Any) -> bool:
    return isinstance(item, Mapping) and ("filter" in item or "value" in item)


def _one_of(expected: str) -> Discriminator:
    return Discriminator(_shape, "wrong_shape", f"expected {expected}")


def _no_knots(value: Any) -> Any:
    if isinstance(value, Range) and value.knots is not None:
        raise ValueError("knots have no place here: a range with knots stands for a whole merge parameter")
    return value


def _only_switches(value: Any) -> Any:
    if isinstance(value, Choices) and not all(isinstance(choice, bool) for choice in value.choices):
        raise ValueError("a switch has the choices [false, true]")
    return value


def _only_whole(value: Any) -> Any:
    if isinstance(value, Choices) and not all(type(choice) is int for choice in value.choices):
        raise ValueError("every choice must be a whole number here")
    return value


def _only_numbers(value: Any) -> Any:
    if isinstance(value, Choices) and any(isinstance(choice, bool | str) for choice in value.choices):
        raise ValueError("every choice must be a number here")
    return value


_Switch: TypeAlias = Annotated[bool, Tag("switch")]
_Float: TypeAlias = Annotated[int | float, Tag("number")]
_Int: TypeAlias = Annotated[int, Tag("number")]
_Range: TypeAlias = Annotated[Range, Tag("range")]
_FlatRange: TypeAlias = Annotated[Range, AfterValidator(_no_knots), Tag("range")]
_IntRange: TypeAlias = Annotated[IntRange, AfterValidator(_no_knots), Tag("range")]
_Choices: TypeAlias = Annotated[Choices, Tag("choices")]
_Numbers: TypeAlias = Annotated[Choices, AfterValidator(_only_numbers), Tag("choices")]
_WholeNumbers: TypeAlias = Annotated[Choices, AfterValidator(_only_whole), Tag("choices")]
_Switches: TypeAlias = Annotated[Choices, AfterValidator(_only_switches), Tag("choices")]

Number: TypeAlias = int | float
SearchNumber: TypeAlias = Annotated[
    _Float | _FlatRange | _Numbers,
    _one_of("a number, a range {low: ..., high: ...}, or {choices: [...]}"),
]
"""A number, a range of numbers, or a choice between numbers."""
SearchInt: TypeAlias = Annotated[
    _Int | _IntRange | _WholeNumbers,
    _one_of("a whole number, a range {low: ..., high: ...}, or {choices: [...]}"),
]
"""A whole number, a range of them, or a choice between them."""
SearchSwitch: TypeAlias = Annotated[_Switch | _Switches, _one_of("true, false, or {choices: [false, true]}")]
"""True, false, or both to choose from."""

Gradient: TypeAlias = list[SearchNumber]
"""Numbers over the depth of the model, interpolated between; any may be a range."""
Unfiltered: TypeAlias = Annotated[
    _Switch | _Float | _Range | _Choices | Annotated[Gradient, Field(min_length=1), Tag("gradient")],
    _one_of("a number, true or false, a range {low: ..., high: ...}, {choices: [...]}, or a list of numbers"),
]


class Filtered(Block):
    """A value for the tensors whose name contains ``filter`` (``*`` or absent: for all others)."""

    filter: str | None = None
    """Part of a tensor's name, such as ``self_attn``; the first match in the list wins."""
    value: Unfiltered
    """A number, a range, or a gradient."""


Parameter: TypeAlias = Annotated[
    _Switch
    | _Float
    | _Range
    | _Choices
    | Annotated[Gradient, Field(min_length=1), Tag("gradient")]
    | Annotated[list[Filtered], Field(min_length=1), Tag("filters")],
    _one_of(
        "a number, true or false, a range {low: ..., high: ...}, {choices: [...]}, a list of numbers over "
        "the depth, or a list of {filter: ..., value: ...}"
    ),
]
"""A merge parameter: number, range, gradient over depth, or a list of filters."""


class DataFile(Block):
    """A file that decides a result, such as a text that something is measured on."""

    path: str = Field(min_length=1)
    """The file, relative to the working directory; for a corpus it may be a folder of text files."""
    content: str | None = Field(default=None, pattern="^sha256:[0-9a-f]{64}$")
    """What the file must hold. Filled in when a recipe is made: what a file holds counts, not where it is."""


class ItemsFile(DataFile):
    """A file of what a score asks: nothing is learned from it, it is what must not be learned."""


class StageBlock(Block):
    """The keys that every stage has."""

    name: str | None = Field(default=None, min_length=1)
    """Name of the output, for later stages."""
    enabled: SearchSwitch = True
    """Whether the stage runs. ``{choices: [false, true]}`` lets the search decide."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of the stage's own randomness; absent: the seed of the search."""

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of inputs that are run on data before anything is built: models, no outputs of stages."""
        return ()

    @property
    def reshapes(self) -> bool:
        """Whether values of its ranges decide the shapes of the output, so that engines restart."""
        return False

    def problems(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Return what the types cannot say, as ``(path inside the block, message with the mend)``.

        Such as a parameter that the chosen method does not have. Called after validation; reads no files.
        A message that quotes the last key of its path is shown at the key, any other at the value.
        """
        return []

    @classmethod
    def effective(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return a plain block, every value fixed, without what has no effect on the result.

        Recipes of one effect are one recipe: what is switched off inside a block must not tell them apart.
        """
        return plain

    @classmethod
    def draws(cls, plain: Mapping[str, Any]) -> bool:
        """Return whether the result of a plain block, every value fixed, depends on its seed."""
        return True

    def needs(self) -> list[tuple[tuple[str | int, ...], str, str]]:
        """Return ``(path inside the block, kind of stage, message)`` for what its input must come from.

        A stage that may be off counts as one: where it is off, :meth:`without` says what the block is then.
        """
        return []

    @classmethod
    def without(cls, plain: dict[str, Any], kinds: frozenset[str]) -> dict[str, Any]:
        """Return a plain block without what it only does where stages before it are on.

        Args:
            plain: Every value fixed.
            kinds: Kinds of stages that its input would have gone through, and that are off.
        """
        return plain
