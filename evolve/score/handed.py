"""Hands the items of a score to the stages whose teacher writes text: no row may share words with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evolve.config.plain import plain
from evolve.generate.blocks import GenerateBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evolve.config.load import Loaded
    from evolve.errors import Problem
    from evolve.score.tasks import LoadedTask


def with_items(loaded: Loaded, tasks: Sequence[LoadedTask]) -> Loaded:
    """Return the config in which every ``ngram_overlap`` without a file has one with the items of the tasks.

    Those of both splits, a line each, in a file of the user's cache that is named by what it holds.

    Args:
        loaded: The config.
        tasks: Its tasks, items drawn; none: the config is returned as it is.

    Raises:
        UserError: The file cannot be written.
    """
    wanting = set(_wanting(loaded))
    if not wanting or not tasks:
        return loaded
    file = _written(tasks)
    stages = []
    for place, (kind, block) in enumerate(loaded.stages):
        data = plain(block)
        if place in wanting:
            data["generate"]["filters"]["banned"] = {"path": str(file)}
        stages.append((kind, type(block).model_validate(data) if place in wanting else block))
    pipeline = [{kind: plain(block)} for kind, block in stages]
    config = loaded.config.model_copy(update={"pipeline": pipeline})
    return replace(loaded, config=config, stages=tuple(stages))


def without_items(loaded: Loaded) -> list[Problem]:
    """Return a problem for each ``ngram_overlap`` that nothing would be held against."""
    return [
        loaded.problem(
            ("pipeline", place, loaded.stages[place][0], "generate", "filters", "ngram_overlap"),
            "no items of a score are known here, so no row would be held against any: give filters.banned, a "
            "file of them (`evolve run` takes those of score.tasks), or remove ngram_overlap",
        )
        for place in _wanting(loaded)
    ]


def _wanting(loaded: Loaded) -> Iterator[int]:
    for place, (_, block) in enumerate(loaded.stages):
        written = getattr(block, "generate", None)
        if isinstance(written, GenerateBlock) and block.enabled is not False:
            filters = written.filters
            if filters.ngram_overlap is not None and filters.banned is None:
                yield place


def _written(tasks: Sequence[LoadedTask]) -> Path:
    from evolve.score.overlap import item_text
    from evolve.training.kept import kept

    texts = (
        " ".join(item_text(one.task, item.doc).split())
        for one in tasks
        for items in one.sets.values()
        for item in items
    )
    # A line that began with # would be a comment; words are compared without signs.
    lines = sorted({text.lstrip("# ") for text in texts} - {""})
    text = "".join(f"{line}\n" for line in lines)
    return kept("items", {"lines": lines}, ".txt", lambda path: _write(path, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
