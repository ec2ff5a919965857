"""The stages that take effect: those that are on and that the result depends on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.config.references import references, rename

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.values import StageBlock


class Filled(NamedTuple):
    """A stage with every value fixed.

    Attributes:
        kind: Such as ``merge``.
        block: The checked block, which may still have ranges.
        plain: The plain block without ranges and defaults.
    """

    kind: str
    block: StageBlock
    plain: Mapping[str, Any]


class Effect(NamedTuple):
    """What is built.

    Attributes:
        models: The models that are used, in the order of the config.
        pipeline: The stages, each ``{kind: block}``; empty where the result is a model as it is.
    """

    models: tuple[str, ...]
    pipeline: list[dict[str, Any]]


class _Kept(NamedTuple):
    output: str
    kind: str
    plain: dict[str, Any]


def effect(stages: Sequence[Filled], models: Sequence[str], *, seed: int) -> Effect:
    """Drop what has no effect, so that recipes of one effect are one recipe.

    A stage that is off is replaced by its input; a stage that the result does not depend on is dropped, and
    so is the name of an output that nobody reads.

    Args:
        stages: The pipeline.
        models: The models' names.
        seed: Written into each stage that has none of its own.
    """
    kept, result = _switched_on(stages, models, seed)
    needed = {result}
    used: list[_Kept] = []
    for stage in reversed(kept):
        if stage.output in needed:
            needed.update(name for _, name in references(stage.plain))
            used.insert(0, stage)
    read = {name for stage in used for _, name in references(stage.plain)}
    pipeline = []
    for stage in used:
        name = {"name": stage.output} if stage.output in read else {}
        pipeline.append({stage.kind: normal({**name, **stage.plain})})
    return Effect(tuple(name for name in models if name in needed), pipeline)


def _switched_on(stages: Sequence[Filled], models: Sequence[str], seed: int) -> tuple[list[_Kept], str]:
    taken = {*models, *(stage.block.name for stage in stages if stage.block.name)}
    stands_for: dict[str, str] = {}
    kept: list[_Kept] = []
    previous = models[0]
    # Kinds of stages that are off, which each output would have gone through; None: the output before.
    off: dict[str | None, frozenset[str]] = {}
    for position, stage in enumerate(stages, start=1):
        changes_one = "model" in type(stage.block).model_fields
        kinds = off.get(stage.plain.get("model"), frozenset()) if changes_one else frozenset()
        kinds = kinds - {stage.kind} if stage.plain.get("enabled", True) else kinds | {stage.kind}
        off[None] = kinds
        if stage.block.name:
            off[stage.block.name] = kinds
        plain = rename(dict(stage.plain), stands_for)
        name, enabled = plain.pop("name", None), plain.pop("enabled", True)
        if changes_one and plain.get("model") is None:
            plain["model"] = previous
        if enabled:
            plain = type(stage.block).without(plain, kinds)
            output = name or _fresh(f"{stage.kind}{position}", taken)
            plain.setdefault("seed", seed)
            kept.append(_Kept(output, stage.kind, type(stage.block).effective(plain)))
            previous = output
        else:
            previous = _passed_through(plain)
            if name:
                stands_for[name] = previous
    return kept, previous


def _passed_through(plain: Mapping[str, Any]) -> str:
    """Return what a stage hands on when it is off: its model, its base, or the first model that it names."""
    own = [str(plain[key]) for key in ("model", "base_model") if isinstance(plain.get(key), str)]
    return [*own, *(name for _, name in references(plain))][0]


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def normal(value: Any) -> Any:
    """Return plain data with one spelling for each number: JSON knows no difference between 1 and 1.0.

    Raises:
        ValueError: A number is infinite or not a number.
    """
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a recipe has finite numbers only, got {value}")
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
    return value
