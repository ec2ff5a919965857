"""What the student reads of a row with reasons: with them, as a second task, without, or with another's.

``second_task`` is distilling step by step (Hsieh et al. 2023, arXiv:2305.02301): the same prompt once with
the answer and once with the reasons, told apart by a marker, so that the student needs no reasons to answer.
``shuffled`` is the control for ``inline``: the same reasons, each at another question of the same answer.
What a student gains from reasons and not from shuffled ones, it gains from what they say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from evolve.conversations import Message
from evolve.generate import draws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evolve.conversations import Conversation
    from evolve.generate.blocks import RationaleBlock


class Span(NamedTuple):
    """A part of a turn.

    Attributes:
        message: Which turn of the conversation.
        start: Its first character.
        end: Behind its last character.
    """

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """What is trained on.

    Attributes:
        conversation: The turns; none has reasons apart any more.
        reasons: Where reasons stand in it, with the tags around them. They have a weight of their own.
    """

    conversation: Conversation
    reasons: tuple[Span, ...] = ()


class Examples(NamedTuple):
    """What is trained on, and how it came about.

    Attributes:
        examples: In the order of the rows.
        counts: ``without_reasons``: rows that have none; ``lone``: left out of ``shuffled``, since no other
            question has the same answer and reasons to swap.
    """

    examples: list[Example]
    counts: Counter[str]


def with_rationale(block: RationaleBlock, rows: Sequence[Conversation], *, seed: int) -> Examples:
    """Return the examples that rows make.

    Args:
        block: Its weight is left to the loss.
        rows: Each ends with a turn of the assistant's.
        seed: Decides which reasons go where in ``shuffled``.
    """
    mode = block.mode
    if not isinstance(mode, str):
        raise TypeError(f"a choice is left where a mode is needed: {mode!r}")
    counts: Counter[str] = Counter(without_reasons=sum(row.messages[-1].reasoning is None for row in rows))
    if mode == "shuffled":
        rows, lone = _shuffled(rows, seed)
        counts["lone"] = lone
    make: Callable[[RationaleBlock, Conversation], Iterator[Example]] = {
        "inline": _inline,
        "shuffled": _inline,
        "second_task": _two_tasks,
        "none": _answer_only,
    }[mode]
    return Examples([example for row in rows for example in make(block, row)], +counts)


def _answer_only(block: RationaleBlock, row: Conversation) -> Iterator[Example]:
    yield Example(_ending(row, row.messages[-1].content))


def _inline(block: RationaleBlock, row: Conversation) -> Iterator[Example]:
    last = row.messages[-1]
    if last.reasoning is None:
        yield from _answer_only(block, row)
        return
    # Both may hold braces, so the template is cut instead of filled.
    before, _, rest = block.template.partition("{reasoning}")
    between, _, after = rest.partition("{answer}")
    reasons = f"{before}{last.reasoning}{between}"
    place = len(row.messages) - 1
    yield Example(_ending(row, f"{reasons}{last.content}{after}"), (Span(place, 0, len(reasons)),))


def _two_tasks(block: RationaleBlock, row: Conversation) -> Iterator[Example]:
    last = row.messages[-1]
    yield Example(_ending(_marked(row, block.answer_marker), last.content))
    if last.reasoning is not None:
        asked = _ending(_marked(row, block.rationale_marker), last.reasoning)
        yield Example(asked, (Span(len(row.messages) - 1, 0, len(last.reasoning)),))


def _ending(row: Conversation, content: str) -> Conversation:
    """Return a row with another last turn, and no reasons in any."""
    turns = [Message(turn.role, turn.content) for turn in row.messages[:-1]]
    return replace(row, messages=(*turns, Message("assistant", content)))


def _marked(row: Conversation, marker: str) -> Conversation:
    """Return a row with a marker before the user's last turn."""
    turns = list(row.messages)
    asked = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if asked:
        turns[asked[-1]] = Message("user", marker + turns[asked[-1]].content)
    return replace(row, messages=tuple(turns))


def _shuffled(rows: Sequence[Conversation], seed: int) -> tuple[list[Conversation], int]:
    """Return the rows with the reasons of other questions of the same answer, and how many had no such."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.messages[-1].reasoning is not None:
            groups[" ".join(row.messages[-1].content.split()).casefold()].append(index)
    source = {index: index for index, row in enumerate(rows) if row.messages[-1].reasoning is None}
    for members in groups.values():
        source |= _deranged(members, [_question(rows[index]) for index in members], seed)
    found = []
    for index in sorted(source):
        turns = rows[index].messages
        reasoning = rows[source[index]].messages[-1].reasoning
        last = replace(turns[-1], reasoning=reasoning)
        found.append(replace(rows[index], messages=(*turns[:-1], last)))
    return found, len(rows) - len(source)


def _deranged(members: Sequence[int], questions: Sequence[str], seed: int) -> dict[int, int]:
    """Return for each member another of another question, every one used once; members without one left out.

    With the members of a question side by side, a shift by the size of the largest question never stays
    within one, if all together are at least twice as many. Members of the largest beyond that are left out.
    """
    blocks: dict[str, list[int]] = defaultdict(list)
    for member, question in zip(members, questions, strict=True):
        blocks[question].append(member)
    for question, block in blocks.items():
        block.sort(key=lambda member: (draws.number(seed, "shuffled", question, member), member))
    largest = max(blocks, key=lambda question: (len(blocks[question]), question))
    others = len(members) - len(blocks[largest])
    blocks[largest] = blocks[largest][:others]
    order = sorted(blocks, key=lambda question: draws.number(seed, "shuffled", question))
    line = [member for question in order for member in blocks[question]]
    shift = max(map(len, blocks.values()))
    return {member: line[(place + shift) % len(line)] for place, member in enumerate(line)}


def _question(row: Conversation) -> str:
    return "\n".join(f"{turn.role}: {turn.content}" for turn in row.prompt if turn.role != "system")
