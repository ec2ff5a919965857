"""Rejection sampling: which answers are right, how many of a prompt's were, and which of them are kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import UserError
from evolve.generate.checks import fixed, fixed_number
from evolve.generate.verifiers.base import Case
from evolve.registry import VERIFIERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.generate.blocks import VerifyBlock
    from evolve.generate.prompts import Prompt
    from evolve.generate.styles.base import Draft

_OF_THE_TURN = frozenset({"answer", "completion", "output", "response", "messages", "conversations"})
"""Keys whose value was read as the assistant's turn."""


class Verified(NamedTuple):
    """The rows that are kept, and what became of the others.

    Attributes:
        drafts: In the order that they came in.
        counts: ``wrong``, ``unjudged`` (wrong since it could not be judged), ``pass_rate`` (right answers of
            prompts that are too hard or too easy), ``surplus`` (right answers beyond the most of a prompt).
    """

    drafts: list[Draft]
    counts: Counter[str]


def verify(block: VerifyBlock, drafts: Sequence[Draft], asked: Mapping[str, int]) -> Verified:
    """Keep right answers.

    Args:
        block: How right answers are told.
        drafts: All answers.
        asked: Name of a prompt to how many answers to it there could be: also one that is cut off has not
            passed. None of a budget's or a server's making is among them.

    Raises:
        UserError: A prompt has no reference, or the verifier cannot judge.
    """
    cases = [_case(block, draft) for draft in drafts]
    verdicts = VERIFIERS.load(block.kind).judge(block, cases)
    counts: Counter[str] = Counter()
    right: dict[str, list[Draft]] = defaultdict(list)
    for draft, verdict in zip(drafts, verdicts, strict=True):
        if verdict.right:
            right[draft.prompt.name].append(draft)
        else:
            counts["unjudged" if verdict.trouble else "wrong"] += 1
    low, high = fixed_number(block.min_pass_rate), fixed_number(block.max_pass_rate)
    kept: list[Draft] = []
    for name, passed in right.items():
        rate = len(passed) / max(asked.get(name, 0), len(passed))
        if not low <= rate <= high:
            counts["pass_rate"] += len(passed)
            continue
        chosen = _chosen(block, passed)
        counts["surplus"] += len(passed) - len(chosen)
        kept += [draft.noting(pass_rate=round(rate, 6)) for draft in chosen]
    return Verified(sorted(kept, key=lambda draft: draft.order), +counts)


def _chosen(block: VerifyBlock, passed: Sequence[Draft]) -> list[Draft]:
    most = None if block.max_per_prompt is None else fixed(block.max_per_prompt)
    if block.keep == "shortest":
        ordered = sorted(passed, key=lambda draft: (draft.tokens, len(draft.written), draft.order))
        return ordered[: most or 1]
    return sorted(passed, key=lambda draft: draft.order)[:most]


def _case(block: VerifyBlock, draft: Draft) -> Case:
    reference = None if block.field is None else reference_of(draft.prompt, block.field)
    return Case(draft.answer.content, reference, draft.prompt.row)


def reference_of(prompt: Prompt, field: str) -> Any:
    """Return what a prompt's line has under a key; dots lead into objects.

    Raises:
        UserError: There is nothing.
    """
    value: Any = prompt.row
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) or hasattr(value, "get") else None
    if value is None and field in _OF_THE_TURN:
        value = prompt.answer
    if value is None:
        raise UserError(
            f"{prompt.place}: no {field!r} to hold answers against: add it, or name another key in "
            "verify.field"
        )
    return value
