"""The text of a distillation: a file that is there, or one that a teacher behind an API writes first."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.config.values import DataFile
from evolve.errors import UserError
from evolve.generate.blocks import ApiTeacher
from evolve.weights.content import file_content

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.generate.progress import Show, Status
    from evolve.generate.run import Generated
    from evolve.stages.distill.block import DistillBlock

logger = logging.getLogger(__name__)

_LINE_EVERY = 30.0
"""Seconds between two lines of progress in a candidate's log."""


class Text(NamedTuple):
    """What is trained on.

    Attributes:
        file: With the content that it has.
        about: What is told of it beside the trained model; empty for a file that was there.
    """

    file: DataFile
    about: Mapping[str, Any]


def text_of(block: DistillBlock) -> Text:
    """Return the text; where a teacher is to write it, it is asked for what is not there yet.

    Raises:
        UserError: The file cannot be read, or the text is not whole.
    """
    if block.generate is None or not isinstance(block.teacher, ApiTeacher):
        assert block.dataset is not None
        path, content = block.dataset.path, block.dataset.content
        return Text(DataFile(path=path, content=content or file_content(Path(path).expanduser())), {})
    from evolve.generate.run import generate
    from evolve.training import ranks
    from evolve.weights.files import cache_folder

    filters = block.generate.filters
    if filters.ngram_overlap is not None and filters.banned is None:
        raise UserError("generate.filters.ngram_overlap: nothing is known to compare with: give banned")
    with ranks.first():  # the others find the answers there
        made = generate(
            block.generate, block.teacher, folder=cache_folder("generated"), progress=_progress(block.name)
        )
    _require_whole(made)
    made.require(block.generate.content)
    for warning in made.warnings:
        logger.warning("distill: %s", warning)
    logger.info("distill: the teacher wrote %d rows, %d answers asked for now", made.rows, made.asked)
    about = {
        "content": made.content,
        "counts": {key: count for key, count in made.counts.items() if count or key == "rows"},
        "asked": made.asked,
        "store_tokens": made.spent.tokens,
        "store_usd": made.spent.usd,
    }
    return Text(DataFile(path=str(made.path), content=made.content), {"written": about})


def _require_whole(made: Generated) -> None:
    if made.failed:
        # A budget ends it with what there is; a server that fails must not decide what is trained on.
        raise UserError(f"{'; '.join(made.warnings)}. The same command asks for the rest")
    if made.over_budget and not made.counts["answers"]:
        raise UserError(
            f"generate.budget leaves no room for a first answer: {made.spent.tokens} tokens and "
            f"{made.spent.usd:.2f} USD, those of earlier searches among them, are in {made.path.parent}. The "
            "budget is one of all that was ever written there: raise it by that much, or set XDG_CACHE_HOME "
            "to another folder"
        )


def _progress(name: str | None) -> Show:
    """Return what writes a line into the log at the start and the end of a phase, and now and then."""
    last: tuple[str, float] = ("", 0.0)

    def show(status: Status) -> None:
        nonlocal last
        now = time.monotonic()
        ends = status.done == status.total and status.phase in ("asking", "judging")
        if (status.phase, ends) == (last[0], False) and now - last[1] < _LINE_EVERY:
            return
        last = (status.phase, now)
        logger.info(
            "%s: %s, %d of %d done; %d tokens and %.2f USD so far",
            name or "distill",
            status.phase,
            status.done,
            status.total,
            status.tokens,
            status.usd,
        )

    return show
