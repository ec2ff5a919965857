"""``loss_functions`` of a config: which losses are added up, with what weight, temperature and parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.registry import LOSSES, did_you_mean
from evolve.stages.distill.layers import NAMED, LayerMapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evolve.stages.distill.losses.base import Loss

_NONE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Term:
    """One loss with everything fixed.

    Attributes:
        loss: A loss of :data:`evolve.registry.LOSSES`.
        weight: Not negative; a loss of weight 0 is not computed.
        temperature: Both models' logits are divided by it. 1 for a loss without a temperature.
        values: Of all the loss's own parameters.
        layers: Which layers are compared, for a loss between layers.
    """

    loss: type[Loss]
    weight: float = 1.0
    temperature: float = 1.0
    values: Mapping[str, float] = field(default_factory=lambda: _NONE)
    layers: LayerMapping = "even"

    @property
    def factor(self) -> float:
        """What the loss is multiplied with, so that its gradient does not shrink with the temperature."""
        return float(self.temperature**self.loss.power)


def check_terms(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return ``(path inside loss_functions, message with the mend)`` for all that is wrong; values fixed."""
    found = [
        (f"{index}{path}", message) for index, entry in enumerate(entries) for path, message in _check(entry)
    ]
    if not found and not any(float(entry.get("weight", 1.0)) for entry in entries):
        found.append(("", "all weights are 0: nothing would be learned; give one loss a fixed weight"))
    return found


def make_terms(entries: Sequence[Mapping[str, Any]]) -> tuple[Term, ...]:
    """Return the terms of a config, those of weight 0 left out.

    Args:
        entries: Mappings with ``function``, and as far as they differ from the defaults ``weight`` (1),
            ``temperature`` (1), ``layer_mapping`` (``even``) and the loss's parameters. No ranges.

    Raises:
        CandidateError: Something is wrong, such as all weights being 0.
    """
    problems = check_terms(entries)
    if problems:
        text = "; ".join(
            f"loss_functions{'.' if path else ''}{path}: {message}" for path, message in problems
        )
        raise CandidateError("invalid_recipe", text)
    terms = (_term(entry) for entry in entries)
    return tuple(term for term in terms if term.weight)


def _term(entry: Mapping[str, Any]) -> Term:
    loss = LOSSES.load(entry["function"])
    mapping = entry.get("layer_mapping", "even")
    return Term(
        loss=loss,
        weight=float(entry.get("weight", 1.0)),
        temperature=float(entry.get("temperature", 1.0)),
        values=MappingProxyType(
            {param.name: float(entry.get(param.name, param.default)) for param in loss.params}
        ),
        layers=mapping
        if isinstance(mapping, str)
        else tuple((int(ours), int(theirs)) for ours, theirs in mapping),
    )


def _check(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = entry.get("function")
    if name not in LOSSES:
        yield ".function", f"unknown loss {name!r}{did_you_mean(str(name), LOSSES.names())}"
        return
    loss = LOSSES.load(str(name))
    known = {"function", "weight", *(param.name for param in loss.params)}
    known |= {"temperature"} if loss.reads == "scores" else {"layer_mapping"}
    for key in entry:
        if key not in known:
            yield f".{key}", f"{name} has no such key{did_you_mean(str(key), known)}"
    for key, low, high in (("weight", 0.0, None), *((p.name, p.low, p.high) for p in loss.params)):
        if key in entry:
            yield from _number(key, entry[key], low, high)
    if "temperature" in known & entry.keys():
        yield from _temperature(loss, entry["temperature"])
    if "layer_mapping" in known & entry.keys():
        yield from _layers(entry["layer_mapping"])


def _number(key: str, value: Any, low: float | None, high: float | None) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        yield f".{key}", f"must be a number, got {value!r}"
    elif low is not None and value < low:
        yield f".{key}", f"must be at least {low:g}, got {value:g}"
    elif high is not None and value > high:
        yield f".{key}", f"must be at most {high:g}, got {value:g}"


def _temperature(loss: type[Loss], value: Any) -> Iterator[tuple[str, str]]:
    problems = list(_number("temperature", value, None, None))
    yield from problems
    if not problems and not value > 0:
        yield ".temperature", f"must be above 0, got {value:g}"
    elif not problems and loss.power == 0 and value != 1:
        yield ".temperature", f"{loss.name} is always taken at temperature 1; leave the key out"


def _layers(value: Any) -> Iterator[tuple[str, str]]:
    named = isinstance(value, str) and value in NAMED
    pairs = (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
        and all(isinstance(layer, int) and layer >= 0 for pair in value for layer in pair)
    )
    if not named and not pairs:
        yield (
            ".layer_mapping",
            f"must be {', '.join(NAMED)}, or pairs [[student, teacher], ...]; got {value!r}",
        )
