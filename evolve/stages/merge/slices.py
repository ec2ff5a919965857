"""The keys of slices, modules and stacks: which layers of which model make up the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from evolve.config.values import Block, Choices, Parameter, SearchNumber, SearchSwitch

if TYPE_CHECKING:
    from collections.abc import Sequence

STRUCTURES = ("models", "slices", "modules", "stack")
"""The keys that say what is merged; a merge has one of them."""
MOST_SLICES = 1000
"""Most slices that a stack may stand for: each is a gene or two."""


def _full_form(parameters: Any) -> Any:
    """Accept what mergekit accepts beside the full form: nothing at all, and one filter without a list."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        return parameters
    return {
        name: [value] if isinstance(value, dict) and "value" in value else value
        for name, value in parameters.items()
    }


def _check_range(layers: list[int]) -> list[int]:
    first, end = layers
    if first < 0 or end <= first:
        raise ValueError(
            f"layer_range is [first, end): the layers from first to end - 1, counted from 0; got {layers}"
        )
    return layers


Parameters: TypeAlias = Annotated[dict[str, Parameter], BeforeValidator(_full_form)]
LayerRange: TypeAlias = Annotated[list[int], Field(min_length=2, max_length=2), AfterValidator(_check_range)]


class MergeModel(Block):
    """One model of the merge."""

    model: str
    """Name of a model or of an earlier stage's output."""
    parameters: Parameters = Field(default_factory=dict)
    """Values for this model; they go before those of the whole merge. Those of the base have no effect."""


class SliceSource(Block):
    """Consecutive layers of one model."""

    model: str
    """Name of a model or of an earlier stage's output."""
    layer_range: LayerRange
    """``[first, end]``: the layers from ``first`` to ``end - 1``, counted from 0."""
    parameters: Parameters = Field(default_factory=dict)
    """Values for this source; they go before those of the slice, the module and the whole merge."""


class Slice(Block):
    """Consecutive layers of the result, merged from as many layers of each source."""

    enabled: SearchSwitch = True
    """Whether the result has these layers. ``{choices: [false, true]}`` lets the search decide."""
    sources: list[SliceSource] = Field(min_length=1)
    """The layers that are merged with each other. The base, if the method has one, is among them."""
    base_model: str | None = None
    """The base of this slice; absent: that of the whole merge."""
    scale: SearchNumber = 1.0
    """Factor of the hidden state that enters the slice, above 0. For layers that read through a norm."""
    residual_weight: float | None = None
    """A key of mergekit that has no effect there either."""
    parameters: Parameters = Field(default_factory=dict)
    """Values for this slice; they go before those of the module and the whole merge."""

    @property
    def word(self) -> str | None:
        """What a gene of this slice is called by: its only source, if it has one."""
        if len(self.sources) != 1:
            return None
        (source,) = self.sources
        first, end = source.layer_range
        return (
            f"{source.model}.layer{first}" if end - first == 1 else f"{source.model}.layers{first}-{end - 1}"
        )


class Module(Block):
    """One of the parts of a model that have layers of their own, such as a vision tower."""

    models: list[MergeModel] | None = Field(default=None, min_length=1)
    """Whole models to merge."""
    slices: list[Slice] | None = None
    """Or layers of models to stack."""
    parameters: Parameters = Field(default_factory=dict)
    """Values for this module; they go before those of the whole merge."""


class StackSource(Block):
    """A model whose layers are laid out."""

    model: str
    """Name of a model or of an earlier stage's output."""
    layer_range: LayerRange
    """``[first, end]``: the layers from ``first`` to ``end - 1``, counted from 0."""


class Stack(Block):
    """Layers of several models in a row, each of which the search may leave out.

    The data-flow space of Akiba et al. 2024, arXiv:2403.13187: short for a list of slices. The centre of its
    ranges, where a search starts, is the first source as it is.
    """

    sources: list[StackSource] = Field(min_length=1)
    """The layers that are laid out, source by source. The first gives config and tokenizer."""
    repeats: int = Field(default=1, ge=1)
    """How many times all of them are laid out."""
    block_size: int = Field(default=1, ge=1)
    """Layers that come and go together: one slice, one switch, one scale."""
    keep_first: int = Field(default=1, ge=0)
    """Layers of the first source that always stand at the front."""
    keep_last: int = Field(default=1, ge=0)
    """Layers of the first source that always stand at the end."""
    enabled: SearchSwitch = Field(default=Choices(choices=[False, True]))
    """Whether a slice takes part. The default lets the search decide for each."""
    scale: SearchNumber = 1.0
    """The ``scale`` of each slice but the first; a range is a gene for each of them."""


def expand(data: Any) -> Any:
    """Replace the key ``stack`` of a merge's plain block by the slices that it stands for.

    The stack stays beside them, for messages. What the schema refuses is left as it is.

    Raises:
        ValueError: Something else is given beside the stack.
    """
    if not isinstance(data, dict) or data.get("stack") is None:
        return data
    given = [key for key in STRUCTURES if data.get(key) is not None]
    if len(given) > 1:
        raise ValueError(one_structure(given))
    try:
        stack = Stack.model_validate(data["stack"])
    except ValidationError:
        return {**data, "slices": []}
    if stack_problem(stack):
        return {**data, "slices": []}
    return {**data, "slices": _slices(stack)}


def one_structure(given: Sequence[str]) -> str:
    """Return the message for a merge with these keys in place of one."""
    got = " and ".join(given) or "none of them"
    return f"exactly one of {', '.join(STRUCTURES)} belongs into a merge, got {got}"


def stack_problem(stack: Stack) -> str:
    """Return what is wrong with a stack beside its types, or an empty text."""
    first, end = stack.sources[0].layer_range
    kept = stack.keep_first + stack.keep_last
    if kept > end - first:
        return f"keep_first and keep_last are {kept} layers, and the first source has {end - first}"
    laid_out = sum(source.layer_range[1] - source.layer_range[0] for source in stack.sources)
    if stack.repeats * laid_out / stack.block_size > MOST_SLICES:
        return f"more than {MOST_SLICES} slices: set block_size higher, or repeats lower"
    return ""


def _slices(stack: Stack) -> list[dict[str, Any]]:
    lead = stack.sources[0]
    first, end = lead.layer_range
    low, high = first + stack.keep_first, end - stack.keep_last
    found = [_one(lead.model, first, low)] if stack.keep_first else []
    for round_ in range(stack.repeats):
        for source in stack.sources:
            start, stop = (low, high) if source is lead else source.layer_range
            for at in range(start, stop, stack.block_size):
                part = _one(source.model, at, min(at + stack.block_size, stop))
                part["enabled"] = _switch(stack.enabled, on=source is lead and round_ == 0)
                found.append(part)
    if stack.keep_last:
        found.append(_one(lead.model, high, end))
    scale = stack.scale if isinstance(stack.scale, int | float) else stack.scale.model_dump()
    return [found[0], *({**part, "scale": scale} for part in found[1:])] if found else []


def _one(model: str, first: int, end: int) -> dict[str, Any]:
    return {"sources": [{"model": model, "layer_range": [first, end]}]}


def _switch(enabled: bool | Choices, *, on: bool) -> Any:
    """Return the switch of one slice; the middle of the choices is where a search starts."""
    if isinstance(enabled, bool) or len(enabled.choices) == 1:
        return enabled if isinstance(enabled, bool) else enabled.model_dump()
    return {"choices": [not on, on]}
