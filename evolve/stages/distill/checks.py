"""What a distillation's block says that no run can do, told before one begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.config.values import Range
from evolve.errors import UserError
from evolve.registry import LOSSES
from evolve.stages.distill.layers import layer_pairs
from evolve.training.arguments import ends

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evolve.stages.distill.block import GenerationBlock, LossEntry

Found = tuple[tuple[str | int, ...], str]


def generation_problems(block: GenerationBlock) -> Iterator[Found]:
    """Yield what nobody can sample with."""
    for key, low, high in (
        ("temperature", 0.0, None),
        ("top_p", 0.0, 1.0),
        ("top_k", 0, None),
        ("max_new_tokens", 1, None),
    ):
        for value in ends(getattr(block, key)):
            if value < low or (high is not None and value > high) or (key == "top_p" and value == 0):
                least = "above 0" if key == "top_p" else f"at least {low:g}"
                most = "" if high is None else f" and at most {high:g}"
                yield (key,), f"{key} must be {least}{most}, got {value:g}"
                break


def pattern_problems(patterns: Sequence[str]) -> Iterator[Found]:
    """Yield the patterns that are no regular expressions."""
    for place, pattern in enumerate(patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            yield (place,), f"{pattern!r} is no regular expression: {error}"


def temperature_problems(kind: str, entries: Sequence[LossEntry]) -> Iterator[Found]:
    """Yield the temperatures that a teacher's k best tokens cannot have.

    Args:
        kind: Of the teacher, ``vllm`` or ``dataset``.
        entries: All losses.
    """
    fixed = set()
    for place, entry in _compared(entries):
        values = {1.0} if entry.temperature is None else set(ends(entry.temperature))
        path = (place, "temperature")
        if kind == "vllm" and values != {1.0}:
            yield path, "vLLM gives log-probabilities at temperature 1 alone: leave it out, or use kind: hf"
        elif isinstance(entry.temperature, Range):
            yield (
                path,
                "a captured teacher has some temperatures and none between: list them in choices, or use "
                "kind: hf",
            )
        elif len(values) == 1:
            fixed |= values
            if len(fixed) > 1:
                yield path, f"a teacher of kind {kind} has one temperature for all losses: make them equal"


def captured_problems(path: str, entries: Sequence[LossEntry]) -> Iterator[Found]:
    """Yield the temperatures at which a captured teacher was not captured, or that it cannot be read."""
    from evolve.stages.distill.captured import key_of, read_manifest

    try:
        known = key_of(read_manifest(Path(path).expanduser())).temperatures
    except UserError as error:
        yield ("teacher", "path"), str(error)
        return
    for place, entry in _compared(entries):
        values = [1.0] if entry.temperature is None else ends(entry.temperature)
        wrong = [value for value in values if value not in known]
        if wrong and not isinstance(entry.temperature, Range):
            key: tuple[str | int, ...] = ("loss_functions", place)
            yield (
                key if entry.temperature is None else (*key, "temperature"),
                f"the teacher was captured at the temperatures {', '.join(f'{one:g}' for one in known)}, not "
                f"at {wrong[0]:g}: change the loss, or capture with --temperature {wrong[0]:g}",
            )


def mapping_problems(entries: Sequence[LossEntry]) -> Iterator[Found]:
    """Yield the layers that losses between attention maps cannot have."""
    for place, entry in enumerate(entries):
        pairs = entry.layer_mapping
        if isinstance(pairs, list) and _reads(entry) == "attentions" and any(0 in pair for pair in pairs):
            yield (
                (place, "layer_mapping"),
                "layer 0, the embeddings, has no attention maps: begin with layer 1",
            )


def depth_problems(entries: Sequence[LossEntry], student: Sequence[int], teacher: int) -> Iterator[Found]:
    """Yield the mappings that name layers which a model does not have.

    Args:
        entries: All losses.
        student: The least and the most layers that the student can have.
        teacher: How many the teacher has.
    """
    for place, entry in enumerate(entries):
        if _reads(entry) not in ("hidden", "attentions"):
            continue
        mapping: Any = entry.layer_mapping or "even"
        for depth in student:
            try:
                layer_pairs(mapping, depth, teacher)
            except ValueError as error:
                yield ("loss_functions", place, "layer_mapping"), str(error)
                break


def _compared(entries: Sequence[LossEntry]) -> Iterator[tuple[int, LossEntry]]:
    """Yield the losses over the vocabulary that read a teacher."""
    for place, entry in enumerate(entries):
        if entry.function in LOSSES and LOSSES.load(entry.function).teacher and _reads(entry) == "scores":
            yield place, entry


def _reads(entry: LossEntry) -> str:
    return LOSSES.load(entry.function).reads if entry.function in LOSSES else ""
