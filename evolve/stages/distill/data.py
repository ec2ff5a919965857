"""The data of a distillation: conversations or plain text as documents with labels, then as rows.

Of a conversation the assistant's turns count, of a prompt with its completion the completion, of a text
every token. A document that is longer than a row is cut at its end; one of which nothing is left that counts
is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.conversations import read_conversations
from evolve.errors import UserError
from evolve.generate.blocks import RationaleBlock
from evolve.generate.rationale import with_rationale
from evolve.statistics.corpus import shuffled, texts
from evolve.training.pack import pack
from evolve.training.rows import IGNORED, Rows
from evolve.training.seeds import seed_of
from evolve.weights.content import file_content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from evolve.generate.rationale import Example
    from evolve.weights.tokenizer import Tokenizer

_LINES = frozenset({".jsonl", ".ndjson"})


@dataclass(frozen=True)
class Document:
    """A document in tokens.

    Attributes:
        tokens: At least two.
        labels: One a token, ``IGNORED`` where it does not count.
        bytes: Of its text.
        reasons: Which tokens are reasons for an answer; None: none is.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    bytes: int
    reasons: tuple[bool, ...] | None = None

    @property
    def prompt(self) -> int:
        """How many tokens stand before the last stretch that counts; at least 1."""
        marks = [label != IGNORED for label in self.labels]
        starts = [place for place, (before, here) in enumerate(pairwise(marks), 1) if here and not before]
        return max(1, starts[-1] if starts else 0)


@dataclass(frozen=True)
class Layout:
    """How documents become rows.

    Attributes:
        max_length: Most tokens of a row.
        max_tokens: Of one time over the data; None: all of it.
        packing: Whether a row holds several documents.
        epochs: How often it is gone over.
        seed: Of the order.
        curriculum: Length of each document, in shuffled order, to the order of one time over the data;
            None: as they were shuffled.
    """

    max_length: int
    max_tokens: int | None = None
    packing: bool = True
    epochs: int = 1
    seed: int = 0
    curriculum: Callable[[Sequence[int], int], Sequence[int]] | None = None


def read(
    path: Path | str,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    content: str | None = None,
    rationale: RationaleBlock | None = None,
    seed: int = 0,
) -> tuple[list[Document], int]:
    """Return the documents of a file, and how many of them do not fit.

    Args:
        path: Conversations in JSONL, or text.
        tokenizer: The student's.
        max_length: Most tokens of a document.
        content: ``sha256:...`` that the file must hold; None: whatever it holds.
        rationale: What is done with the reasons in a conversation; None: they are left out.
        seed: Of ``rationale.mode: shuffled``.

    Raises:
        UserError: The file cannot be read or holds something else, or a conversation needs a chat template
            that the model lacks.
    """
    file = Path(path).expanduser()
    _hold(file, content)
    if file.suffix.lower() in _LINES:
        made = with_rationale(
            RationaleBlock(mode="none") if rationale is None else rationale,
            list(read_conversations(file)),
            seed=seed,
        )
        parts = [(_parts(one, tokenizer), one.conversation.plain) for one in made.examples]
    else:
        parts = [([_Part(text)], True) for text in texts(file)]
    # It may have been replaced while it was read.
    _hold(file, content)
    found = [_document(some, tokenizer, max_length, ends=plain) for some, plain in parts]
    kept = [one for one in found if one is not None]
    if not kept:
        raise UserError(f"{path}: nothing is left to train on within {max_length} tokens a row")
    return kept, len(found) - len(kept)


def _hold(file: Path, content: str | None) -> None:
    if content is not None and (found := file_content(file)) != content:
        raise UserError(
            f"{file} holds {found}, not {content}: it changed, or another file is there; bring back the one "
            "that was meant"
        )


def rows_of(documents: Sequence[Document], layout: Layout, *, left_out: int = 0) -> Rows:
    """Return every row of the training, in order; each time over the data has an order of its own."""
    order = shuffled(len(documents), seed_of(layout.seed, "documents"))
    chosen = [documents[place] for place in order]
    if layout.max_tokens is not None:
        ends = np.cumsum([len(one.tokens) for one in chosen])
        chosen = chosen[: max(1, int(np.searchsorted(ends, layout.max_tokens, side="right")))]
    found = []
    for epoch in range(layout.epochs):
        places = list(range(len(chosen)))
        if epoch:
            places = shuffled(len(chosen), seed_of(layout.seed, "epoch", epoch)).tolist()
        if layout.curriculum is not None:
            lengths = [len(chosen[place].tokens) for place in places]
            ordered = layout.curriculum(lengths, seed_of(layout.seed, "curriculum", epoch))
            places = [places[place] for place in ordered]
        found += [
            one.row
            for one in pack(
                ((one.tokens, one.bytes, one.labels, one.reasons) for one in (chosen[i] for i in places)),
                layout.max_length,
                packing=layout.packing,
            )
        ]
    tokens = sum(len(one.tokens) for one in chosen)
    counts = {"documents": len(chosen), "tokens": tokens, "rows": len(found), "epochs": layout.epochs}
    counts |= {"bytes": sum(one.bytes for one in chosen)}
    return Rows(found, counts | ({"left_out_too_long": left_out} if left_out else {}))


def _document(
    parts: Sequence[_Part], tokenizer: Tokenizer, max_length: int, *, ends: bool
) -> Document | None:
    tokens: list[int] = list(tokenizer.front) if ends else []
    labels: list[int] = [IGNORED] * len(tokens)
    reasons = [False] * len(tokens)
    for ids, part in zip(tokenizer.encode([part.text for part in parts]), parts, strict=True):
        tokens += ids
        labels += ids if part.counts else [IGNORED] * len(ids)
        reasons += [part.reasons] * len(ids)
    if ends and tokenizer.end is not None:
        tokens.append(tokenizer.end)
        labels.append(tokenizer.end)
        reasons.append(False)
    tokens, labels, reasons = tokens[:max_length], labels[:max_length], reasons[:max_length]
    if len(tokens) < 2 or all(label == IGNORED for label in labels[1:]):
        return None
    size = len("".join(part.text for part in parts).encode())
    return Document(tuple(tokens), tuple(labels), size, tuple(reasons) if any(reasons) else None)


class _Part(NamedTuple):
    """A stretch of a document's text."""

    text: str
    counts: bool = True
    reasons: bool = False


def _parts(example: Example, tokenizer: Tokenizer) -> list[_Part]:
    """Return the texts of a conversation in order."""
    conversation = example.conversation
    messages = conversation.messages
    # Reasons begin the last turn, where there are some.
    reasons = messages[-1].content[: example.reasons[0].end] if example.reasons else ""
    if conversation.plain:
        *earlier, last = messages
        turns = [_Part(one.content, one.role == "assistant") for one in earlier]
        return [*turns, *_cut_at(reasons, last.content, counts=last.role == "assistant")]
    template = tokenizer.loaded
    if getattr(template, "chat_template", None) is None:
        raise UserError(
            f"{conversation.place}: a conversation needs the model's chat template, and it has none: give "
            "the model one (chat_template of a merge stage), or write prompt and completion"
        )
    plain = [one.to_json() for one in messages]
    found: list[_Part] = []
    done = ""
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _rendered(template, plain[:place], start=True)
        whole = _rendered(template, plain[: place + 1], start=False)
        if not (before.startswith(done) and whole.startswith(before)):
            raise UserError(
                f"{conversation.place}: the chat template changes earlier turns when a later one comes, so "
                "what counts cannot be told: keep one answer a conversation"
            )
        answer = whole[len(before) :]
        ends = place == len(messages) - 1
        found += [_Part(before[len(done) :], False), *_cut_at(reasons if ends else "", answer)]
        done = whole
    return found


def _cut_at(reasons: str, answer: str, *, counts: bool = True) -> list[_Part]:
    """Return an answer as its reasons and the rest; a template may put something in front of them."""
    begin = answer.find(reasons)
    if not reasons or begin < 0:
        return [_Part(answer, counts)]
    end = begin + len(reasons)
    parts = (_Part(answer[:begin], counts), _Part(reasons, counts, True), _Part(answer[end:], counts))
    return [part for part in parts if part.text]


def _rendered(template: Any, messages: Sequence[dict[str, str]], *, start: bool) -> str:
    text: str = template.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=start)
    return text


def prompts_of(rows: Iterable[Any]) -> Iterator[tuple[int, ...]]:
    """Yield the prompt of each row of one document: what stands before its last stretch that counts.

    Where everything counts the first quarter is the prompt.
    """
    for row in rows:
        document = Document(tuple(row.tokens.tolist()), tuple(row.labels.tolist()), 0)
        begin = document.prompt
        if begin == 1:
            begin = max(1, len(document.tokens) // 4)
        yield document.tokens[:begin]
