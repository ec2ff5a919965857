"""Generates training data: asks, verifies, filters, and writes one JSONL file.

Everything that was asked stays in the store, so the same call goes on where it stopped, asks nothing twice,
and writes the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections import Counter
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from evolve.config.files import pinned_block
from evolve.config.plain import plain, ranges
from evolve.conversations import write_conversations
from evolve.errors import UserError
from evolve.generate.asker import Asker, Rules
from evolve.generate.blocks import ApiTeacher
from evolve.generate.checks import (
    check_generate,
    check_pair,
    check_teacher,
    deciding,
    deciding_of_teacher,
    fixed,
    fixed_number,
)
from evolve.generate.endpoint import Endpoint
from evolve.generate.exchange import Request, Sampling
from evolve.generate.filters.base import Context
from evolve.generate.filters.ngram_overlap import banned_ngrams
from evolve.generate.filters.quality import points_of, question
from evolve.generate.filters.refusals import refuses
from evolve.generate.progress import Status
from evolve.generate.prompts import item_texts
from evolve.generate.store import Limit, Spent, Store
from evolve.generate.verify import reference_of, verify
from evolve.registry import FILTERS, STYLES
from evolve.types import content_hash, without_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from evolve.generate.blocks import FiltersBlock, GenerateBlock, QualityBlock
    from evolve.generate.exchange import Answer
    from evolve.generate.filters.base import Gram
    from evolve.generate.progress import Phase, Show
    from evolve.generate.prompts import Prompt
    from evolve.generate.styles.base import Draft

STORE = "answers.sqlite"
"""Name of the store in its folder."""


@dataclass(frozen=True)
class Generated:
    """What came of it.

    Attributes:
        path: The rows, messages JSONL.
        content: ``sha256:...`` of the file.
        rows: How many.
        counts: What happened to how many, in the order in which it happens: ``prompts``, ``requests``,
            ``answers``, answers that are none by flaw, ``failed``, what verifying and each filter left out
            (``removed_...``), ``rows``.
        spent: What all answers in the store have cost, those of other calls included.
        asked: Answers that this call asked for; the others were in the store.
        over_budget: Whether the budget did not suffice for everything.
        failed: Requests that the server did not answer.
        warnings: Sentences for the user.
    """

    path: Path
    content: str
    rows: int
    counts: Mapping[str, int]
    spent: Spent
    asked: int
    over_budget: bool
    failed: int
    warnings: tuple[str, ...] = field(default=())

    def require(self, content: str | None) -> None:
        """Raise where the rows are not those that ``generate.content`` names.

        Raises:
            UserError: They are others.
        """
        if content is not None and content != self.content:
            raise UserError(
                f"generate.content: {self.path} holds {self.content}, not {content}: what the teacher wrote "
                f"then is not what is written now. Bring the answers of then ({STORE}) into its folder, or "
                "remove content to go on with this text"
            )

    @property
    def complete(self) -> bool:
        """Whether everything was asked. If not, ``warnings`` says why, and the same call goes on."""
        return not self.over_budget and not self.failed


def generate(
    block: GenerateBlock,
    teacher: ApiTeacher,
    *,
    folder: Path,
    out: Path | None = None,
    progress: Show | None = None,
    banned: AbstractSet[Gram] | None = None,
) -> Generated:
    """Return the rows that a teacher writes, in a file.

    Args:
        block: No ranges in it.
        teacher: The server and the model.
        folder: Where the store is, on a disk of this machine; several processes may share it.
        out: The file; absent: one in ``folder`` that is named by its content, so that nobody who generates
            the same with more answers replaces what another reads.
        progress: Is shown what is being done.
        banned: Runs of words that no row may hold, as
            :func:`~evolve.generate.filters.ngram_overlap.banned_ngrams` makes them of a score's items.

    Raises:
        UserError: A file or the blocks are wrong, or no further request can succeed. Every answer is kept.
        Interrupted: Ctrl-C. Every answer is kept.
    """
    block = _right(block, teacher)
    banned = _with_file(banned, block)
    limit = Limit(block.budget.tokens, block.budget.usd)
    with contextlib.closing(Store(folder / STORE)) as store:
        asker = Asker(store, Rules(block.concurrency, block.max_attempts, limit), progress)
        run = _Run(block, teacher, store, asker, banned)
        drafts = run.drafts()
        asker.show(Status("writing", done=len(drafts), total=len(drafts)))
        if out is None:
            partial = folder / f"{identity(block, teacher)}.{os.getpid()}.{secrets.token_hex(4)}.jsonl"
            content = write_conversations(partial, map(run.row, drafts))
            out = partial.replace(folder / f"{content.removeprefix('sha256:')}.jsonl")
        else:
            content = write_conversations(out, map(run.row, drafts))
        asker.show(Status("done", done=len(drafts), total=len(drafts)))
        return Generated(
            path=out,
            content=content,
            rows=len(drafts),
            counts=MappingProxyType({**run.counts, "rows": len(drafts)}),
            spent=store.spent(),
            asked=asker.counts["asked"],
            over_budget=asker.over_budget,
            failed=asker.counts["failed"],
            warnings=tuple(run.warnings()),
        )


def _with_file(banned: AbstractSet[Gram] | None, block: GenerateBlock) -> AbstractSet[Gram] | None:
    """Return what is banned, with what the block's own file bans."""
    length, file = block.filters.ngram_overlap, block.filters.banned
    if length is None or file is None:
        return banned
    return banned_ngrams(item_texts(file.path), length) | (banned or frozenset())


def identity(block: GenerateBlock, teacher: ApiTeacher) -> str:
    """Return 16 hex digits of all that decides the rows: not where the server is, and not what it costs."""
    return content_hash(
        {
            "generate": without_paths(deciding(plain(block))),
            "teacher": deciding_of_teacher(plain(teacher)),
        }
    )


def _right(block: GenerateBlock, teacher: ApiTeacher) -> GenerateBlock:
    """Return the block with the content of its files.

    Raises:
        UserError: Something is wrong with the blocks, or a file does not hold what the block says.
    """
    problems = [(("teacher", *path), message) for path, message in check_teacher(teacher)]
    problems += [(("generate", *path), message) for path, message in check_generate(block)]
    problems += [
        (("generate", *path), "a range is left: give it a value") for path, _ in ranges(block)
    ] or check_pair(block, teacher)
    pinned, wrong = pinned_block(block)
    problems += [(("generate", *path), message) for path, message in wrong]
    if problems:
        lines = (f"{'.'.join(map(str, path))}: {message}" for path, message in problems)
        raise UserError("\n".join(lines))
    return pinned


class _Run:
    """One call of :func:`generate`."""

    def __init__(
        self,
        block: GenerateBlock,
        teacher: ApiTeacher,
        store: Store,
        asker: Asker,
        banned: AbstractSet[Gram] | None,
    ) -> None:
        self._block, self._teacher, self._store, self._asker = block, teacher, store, asker
        self._banned = banned
        self._style = STYLES.load(block.style)
        self._endpoint = Endpoint(teacher, store)
        self.counts: Counter[str] = Counter()

    def drafts(self) -> list[Draft]:
        """Return the rows that stay, in their order."""
        prompts = self._prompts()
        samples = self._samples(prompts)
        answers = self._asker.ask(self._endpoint, [request for _, _, request in samples], usable=self._usable)
        drafts: list[Draft] = []
        self.counts["answers"] = len(answers)
        for prompt, sample, request in samples:
            if request.key in answers:
                found = list(self._style.rows(self._block, prompt, sample, answers[request.key]))
                self.counts["without_rows"] += not found
                drafts += found
        self.counts.update({key: count for key, count in self._asker.counts.items() if key != "asked"})
        if self._block.verify is not None:
            drafts = self._verified(drafts, answers, samples)
        return self._filtered(drafts)

    def row(self, draft: Draft) -> Any:
        """Return the conversation of a draft, with what is known of it beside."""
        about = {**draft.prompt.about, **draft.about}
        metadata = {
            "prompt": draft.prompt.name,
            "sample": draft.sample,
            **({"part": draft.part} if draft.part else {}),
            "style": self._block.style,
            "model": self._teacher.model,
            "tokens": draft.tokens,
            **about,
        }
        return replace(draft.conversation, rest={"metadata": metadata})

    def warnings(self) -> Iterator[str]:
        """Yield what the user should know."""
        if self._asker.over_budget:
            yield (
                "the budget does not suffice for all requests: the rows are of those that were answered. "
                "Raise generate.budget and run the same command again to go on"
            )
        if failed := self._asker.counts["failed"]:
            yield (
                f"{failed} requests failed ({self._asker.last_failure}): run the same command again to ask "
                "them once more"
            )
        if self._block.filters.ngram_overlap is not None and self._banned is None:
            yield (
                "ngram_overlap: no items of a score are known, so no row was held against any: give "
                "filters.banned"
            )
        if not self.counts["prompts"]:
            yield "there are no prompts"

    def _prompts(self) -> list[Prompt]:
        """Return what is asked, each once, in an order that does not depend on the file's."""
        distinct: dict[str, Prompt] = {}
        for prompt in self._style.prompts(self._block):
            self.counts["prompts"] += 1
            if self._block.verify is not None and self._block.verify.field is not None:
                # Before anything is paid for.
                reference_of(prompt, self._block.verify.field)
            if distinct.setdefault(prompt.name, prompt) is not prompt:
                self.counts["repeated_prompts"] += 1
        limit = None if self._block.limit is None else fixed(self._block.limit)
        return [distinct[name] for name in sorted(distinct)][:limit]

    def _samples(self, prompts: Iterable[Prompt]) -> list[tuple[Prompt, int, Request]]:
        block = self._block
        sampling = Sampling(
            temperature=fixed_number(block.temperature),
            top_p=fixed_number(block.top_p),
            max_tokens=fixed(block.max_completion_tokens),
            stop=tuple(block.stop),
            seed=block.seed,
        )
        teacher = self._teacher
        found = [
            (
                prompt,
                sample,
                Request(
                    model=teacher.model,
                    messages=prompt.asked,
                    sampling=sampling,
                    endpoint=teacher.endpoint,
                    extra=teacher.extra_body,
                    sample=sample,
                    place=prompt.place,
                ),
            )
            for prompt in prompts
            for sample in range(fixed(block.n))
        ]
        self.counts["requests"] = len(found)
        return found

    def _usable(self, answer: Answer) -> bool:
        if answer.flaw is not None:
            return False
        return not (self._block.filters.refusals and refuses(answer.text))

    def _verified(
        self,
        drafts: list[Draft],
        answers: Mapping[str, Answer],
        samples: Sequence[tuple[Prompt, int, Request]],
    ) -> list[Draft]:
        assert self._block.verify is not None
        self._show("verifying", len(drafts))
        # An answer that was cut off or refused has not passed; one that was never asked says nothing.
        asked = Counter(
            prompt.name
            for prompt, _, request in samples
            if request.key in answers or self._store.asked(request.key)
        )
        kept, counts = verify(self._block.verify, drafts, asked)
        self.counts.update({f"removed_{key}": count for key, count in counts.items()})
        return kept

    def _filtered(self, drafts: list[Draft]) -> list[Draft]:
        filters: FiltersBlock = self._block.filters
        context = Context(self._banned, self._judged)
        drafts = sorted(drafts, key=lambda draft: draft.order)
        for name in FILTERS.names():
            one = FILTERS.load(name)
            if all(getattr(filters, key) in (None, False) for key in one.keys):
                continue
            self._show("filtering", len(drafts))
            drafts, removed = one.apply(filters, drafts, context)
            self.counts.update({f"removed_{why}": count for why, count in removed.items()})
        return drafts

    def _judged(self, drafts: Sequence[Draft]) -> list[int | None]:
        quality = self._block.filters.quality
        assert quality is not None
        endpoint = Endpoint(self._judge(quality), self._store)
        requests = [question(quality, draft, endpoint.teacher) for draft in drafts]
        answers = self._asker.ask(
            endpoint, requests, usable=lambda answer: answer.flaw is None, phase="judging"
        )
        return [points_of(answers[request.key]) if request.key in answers else None for request in requests]

    def _judge(self, quality: QualityBlock) -> ApiTeacher:
        if isinstance(quality.judge, ApiTeacher):
            return quality.judge
        return self._teacher.model_copy(update={"model": quality.judge or self._teacher.model})

    def _show(self, phase: Phase, total: int) -> None:
        self._asker.show(Status(phase, total=total))
