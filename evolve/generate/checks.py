"""What the types of the blocks cannot say, and what of them has no effect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evolve.config.values import Choices, Range
from evolve.registry import STYLES, VERIFIERS, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evolve.config.yaml import Path
    from evolve.generate.blocks import ApiTeacher, GenerateBlock, RationaleBlock, VerifyBlock

_RESERVED = frozenset(
    {"model", "messages", "prompt", "n", "stream", "temperature", "top_p", "stop", "seed"}
    | {"max_tokens", "max_completion_tokens"}
)

_LOWEST_HIGHEST: dict[tuple[str, ...], tuple[float, float]] = {
    ("limit",): (1, float("inf")),
    ("n",): (1, 10_000),
    ("temperature",): (0, 10),
    ("top_p",): (0.001, 1),
    ("max_completion_tokens",): (1, float("inf")),
    ("textbook", "words_per_text"): (0, 100),
    ("textbook", "texts_per_topic"): (0, 10_000),
    ("textbook", "exercises"): (0, 100),
    ("verify", "max_per_prompt"): (1, float("inf")),
    ("verify", "min_pass_rate"): (0, 1),
    ("verify", "max_pass_rate"): (0, 1),
    ("filters", "min_tokens"): (0, float("inf")),
    ("filters", "max_tokens"): (1, float("inf")),
    ("filters", "min_words"): (0, float("inf")),
    ("filters", "max_words"): (1, float("inf")),
    ("filters", "near_duplicate"): (0.05, 1),
    ("filters", "quality", "min"): (1, 5),
}
"""Bounds of numbers that may be ranges."""

_HOW = ("budget", "concurrency", "content")
"""Keys of the block that say how it is asked, and what must come of it."""


def check_teacher(teacher: ApiTeacher) -> list[tuple[Path, str]]:
    """Return what is wrong with a teacher's block."""
    found: list[tuple[Path, str]] = []
    try:
        parts = urlsplit(teacher.base_url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not host:
        found.append((("base_url",), "expected an address such as http://127.0.0.1:8000/v1"))
    elif parts.username or parts.password or parts.query:
        found.append((("base_url",), "no secrets in the address: name their variable in api_key_env"))
    taken = sorted(_RESERVED & set(teacher.extra_body))
    if taken:
        found.append((("extra_body", taken[0]), f"{taken[0]!r} has a key of its own in teacher or generate"))
    return found


def check_generate(block: GenerateBlock) -> list[tuple[Path, str]]:
    """Return what is wrong with a ``generate`` block."""
    found: list[tuple[Path, str]] = list(_bounds(block))
    if block.style not in STYLES:
        found.append(
            (("style",), f"unknown style {block.style!r}{did_you_mean(block.style, STYLES.names())}")
        )
    else:
        found += _style_keys(block)
    if block.n != 1 and block.temperature == 0:
        found.append((("n",), "several answers at temperature 0 are all the same: raise temperature"))
    if block.answer_pattern is not None:
        found += _pattern(block.answer_pattern, ("answer_pattern",), ("reasoning", "answer"))
    filters = block.filters
    for low, high in (("min_tokens", "max_tokens"), ("min_words", "max_words")):
        least, most = getattr(filters, low), getattr(filters, high)
        if isinstance(least, int) and isinstance(most, int) and least > most:
            found.append((("filters", low), f"{low} {least} is larger than {high} {most}"))
    if block.verify is not None:
        found += [(("verify", *path), message) for path, message in _check_verify(block.verify)]
    if filters.banned is not None and filters.ngram_overlap is None:
        found.append((("filters", "banned"), "nothing is compared: set ngram_overlap, such as 8"))
    if filters.quality is not None and not isinstance(filters.quality.judge, str | None):
        judge = check_teacher(filters.quality.judge)
        found += [(("filters", "quality", "judge", *path), message) for path, message in judge]
    return found


def check_pair(block: GenerateBlock, teacher: ApiTeacher) -> list[tuple[Path, str]]:
    """Return what is wrong with the two blocks together; a path begins with ``teacher`` or ``generate``."""
    quality = block.filters.quality
    prices = teacher.usd_per_million_input_tokens + teacher.usd_per_million_output_tokens
    if block.budget.usd is None:
        return []
    if prices == 0:
        message = "no price is known: give teacher.usd_per_million_input_tokens and ..._output_tokens"
        return [(("generate", "budget", "usd"), message)]
    if quality is not None and isinstance(quality.judge, str) and quality.judge != teacher.model:
        message = "the judge's price is not known: write it as {base_url, model, usd_per_million_...}"
        return [(("generate", "filters", "quality", "judge"), message)]
    return []


def check_rationale(block: RationaleBlock) -> list[tuple[Path, str]]:
    """Return what is wrong with a ``rationale`` block."""
    found: list[tuple[Path, str]] = []
    if any(value < 0 for value in _values(block.weight)):
        found.append((("weight",), "a weight is at least 0"))
    order = [block.template.count("{reasoning}"), block.template.count("{answer}")]
    if order != [1, 1] or block.template.index("{reasoning}") > block.template.index("{answer}"):
        found.append((("template",), "needs {reasoning} once, and after it {answer} once"))
    modes = block.mode.choices if isinstance(block.mode, Choices) else [block.mode]
    if "second_task" in modes and block.answer_marker == block.rationale_marker:
        found.append((("rationale_marker",), "the two markers must differ"))
    return found


def without_effect(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain ``generate`` block without keys that its style and its verifier do not use."""
    found = dict(plain)
    style = found.get("style", "completion")
    used = STYLES.load(style).keys if style in STYLES else frozenset()
    for key in ("prompts", "system_prompts", "textbook", "instruction"):
        if key not in used:
            found.pop(key, None)
    textbook = found.get("textbook")
    if isinstance(textbook, dict) and "words" not in textbook:
        found["textbook"] = {key: value for key, value in textbook.items() if key != "words_per_text"}
    verify = found.get("verify")
    if isinstance(verify, dict) and verify.get("kind") in VERIFIERS:
        unused = _OPTIONS - VERIFIERS.load(verify["kind"]).options
        found["verify"] = {key: value for key, value in verify.items() if key not in unused}
    return found


def deciding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a plain ``generate`` block decides the rows of a call that could finish.

    Not how fast, where and for how much it is asked: a call that a budget stops says so, and is no result.
    """
    found = {key: value for key, value in without_effect(plain).items() if key not in _HOW}
    if isinstance(found.get("verify"), dict):
        found["verify"] = {key: value for key, value in found["verify"].items() if key != "timeout"}
    filters = found.get("filters")
    quality = filters.get("quality") if isinstance(filters, dict) else None
    if isinstance(filters, dict) and isinstance(quality, dict) and isinstance(quality.get("judge"), dict):
        judge = deciding_of_teacher(quality["judge"])
        found["filters"] = {**filters, "quality": {**quality, "judge": judge}}
    return found


def deciding_of_teacher(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a teacher's plain block decides what it answers: not where it is, nor what it costs."""
    return {key: plain[key] for key in ("model", "endpoint", "extra_body") if key in plain}


def without_effect_of_rationale(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain ``rationale`` block without what its mode does not use."""
    unused = {
        "none": {"weight", "template", "answer_marker", "rationale_marker"},
        "second_task": {"template"},
    }.get(plain.get("mode", "inline"), {"answer_marker", "rationale_marker"})
    return {key: value for key, value in plain.items() if key not in unused}


def _style_keys(block: GenerateBlock) -> Iterator[tuple[Path, str]]:
    style = STYLES.load(block.style)
    for key in sorted(style.needs):
        if getattr(block, key) is None:
            yield (), f"style {block.style} needs {key}"
    for key in ("prompts", "system_prompts", "textbook", "instruction"):
        if getattr(block, key) is not None and key not in style.keys:
            yield (key,), f"style {block.style} has no use for {key!r}: remove it"
    if block.system is not None and block.system_prompts is not None:
        yield ("system",), "'system' and 'system_prompts' exclude each other: remove one"
    if block.textbook is not None and block.textbook.texts_per_topic == 0 == block.textbook.exercises:
        yield ("textbook",), "neither texts nor exercises: raise texts_per_topic or exercises"
    if block.verify is not None and block.style == "textbook":
        yield ("verify",), "a textbook has no right answers to hold texts against: remove 'verify'"


_OPTIONS = frozenset({"ignore_case", "tolerance", "pattern", "file", "function", "timeout"})
"""Keys that only some kinds of verifier have."""


def _check_verify(verify: VerifyBlock) -> Iterator[tuple[Path, str]]:
    if verify.kind not in VERIFIERS:
        hint = did_you_mean(verify.kind, VERIFIERS.names())
        yield ("kind",), f"unknown verifier {verify.kind!r}{hint}"
        return
    verifier = VERIFIERS.load(verify.kind)
    for key in sorted(verifier.needs):
        if getattr(verify, key) is None:
            yield (), f"kind {verify.kind} needs {key}"
    for key in sorted((verify.model_fields_set & _OPTIONS) - verifier.options):
        # A plain block has all defaults written out.
        if getattr(verify, key) != type(verify).model_fields[key].get_default(call_default_factory=True):
            yield (key,), f"kind {verify.kind} has no {key!r}: remove it"
    if verify.pattern is not None:
        yield from _pattern(verify.pattern, ("pattern",), ())
    low, high = verify.min_pass_rate, verify.max_pass_rate
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        yield ("min_pass_rate",), f"min_pass_rate {low:g} is larger than max_pass_rate {high:g}"


def _pattern(text: str, path: Path, groups: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        yield path, f"no regular expression: {error}"
        return
    missing = [group for group in groups if group not in pattern.groupindex]
    if missing:
        yield path, f"needs the groups {' and '.join(f'(?P<{group}>...)' for group in missing)}"


def _bounds(block: GenerateBlock) -> Iterator[tuple[Path, str]]:
    for path, (low, high) in _LOWEST_HIGHEST.items():
        value: Any = block
        for key in path:
            value = getattr(value, key, None)
        for number in _values(value):
            if number < low:
                yield path, f"must be at least {low:g}, got {number:g}"
            elif number > high:
                yield path, f"must be at most {high:g}, got {number:g}"


def fixed(value: Any) -> int:
    """Return a whole number that may be a range in the schema, and is none any more."""
    if type(value) is not int:
        raise TypeError(f"a range is left where a number is needed: {value!r}")
    return value


def fixed_number(value: Any) -> float:
    """Return a number that may be a range in the schema, and is none any more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a range is left where a number is needed: {value!r}")
    return float(value)


def _values(value: Any) -> list[float]:
    """Return the numbers that decide on the bounds of a number, a range or a choice."""
    if isinstance(value, Range):
        return list(value.ends)
    if isinstance(value, Choices):
        return [choice for choice in value.choices if isinstance(choice, int | float)]
    return [value] if isinstance(value, int | float) else []
