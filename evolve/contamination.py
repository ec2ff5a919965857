"""Looks for text that items share with each other, or with the texts that a recipe reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evolve.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from evolve.config.load import Loaded
    from evolve.score.overlap import Index, Overlap, Place
    from evolve.score.tasks import LoadedTask


class Found(NamedTuple):
    """What was found.

    Attributes:
        problems: What must be mended before a search.
        warnings: Sentences for the user.
        overlaps: What the items share with each text of the recipe.
    """

    problems: list[Problem]
    warnings: tuple[str, ...]
    overlaps: tuple[Overlap, ...]


def check(loaded: Loaded, tasks: Sequence[LoadedTask]) -> Found:
    """Compare search with holdout items, and both with every data file that a stage of the config names.

    Args:
        loaded: The config.
        tasks: Its tasks, items drawn.
    """
    score = loaded.config.score
    if score is None or not tasks:
        return Found([], (), ())
    index = index_of(tasks)
    problems, warnings = [], []
    for task, message in _sharing(index):
        place = next(number for number, entry in enumerate(score.tasks) if entry.task == task)
        if score.shared_text == "error":
            mend = "take the doubles out of the data, or set score.shared_text: report"
            problems.append(loaded.problem(("score", "tasks", place, "task"), f"{message}: {mend}"))
        else:
            warnings.append(message)
    overlaps = index.overlaps(corpora(loaded))
    warnings += [sentence(one) for one in overlaps if one.shared]
    return Found(problems, tuple(warnings), tuple(overlaps))


def index_of(tasks: Iterable[LoadedTask]) -> Index:
    """Return the runs of words of all items of some tasks."""
    from evolve.score.overlap import Index, Place, item_text

    return Index(
        {
            Place(loaded.entry, split, f"{loaded.prefix}{item.key}"): item_text(loaded.task, item.doc)
            for loaded in tasks
            for split, items in loaded.sets.items()
            for item in items
        }
    )


def corpora(loaded: Loaded) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the data files that the stages name, each once: its path, and its documents.

    A file that cannot be read is left to the stage that wants it.
    """
    from evolve.config.files import files
    from evolve.config.values import ItemsFile

    named = (file for _, block in loaded.stages for _, file in files(block))
    paths = dict.fromkeys(file.path for file in named if not isinstance(file, ItemsFile))
    for path in paths:
        yield path, _documents(path)


def sentence(overlap: Overlap) -> str:
    """Return what was found of a task in a text, as a sentence."""
    return (
        f"{overlap.shared} of {overlap.items} {overlap.split} items of {overlap.task} share text with "
        f"{overlap.corpus} (such as item {overlap.keys[0]}): their scores may show what was read there"
    )


def _documents(path: str) -> Iterator[str]:
    """Yield the texts of a file: of a conversation, all its turns as one."""
    from evolve.conversations import read_conversations
    from evolve.statistics.corpus import texts

    try:
        if path.lower().endswith((".jsonl", ".ndjson")):
            for one in read_conversations(path, answered=False):
                yield "\n".join(message.content for message in one.messages)
        else:
            yield from texts(path)
    except (UserError, OSError):
        return


def _sharing(index: Index) -> Iterator[tuple[str, str]]:
    by_task: dict[str, list[tuple[Place, Place]]] = {}
    for search, held in index.sharing().items():
        by_task.setdefault(search.task, []).append((search, held))
    for task, pairs in by_task.items():
        search, held = pairs[0]
        yield (
            task,
            (
                f"{len(pairs)} search items share text with holdout items, such as {search.key} with "
                f"{held.key} of {held.task}"
            ),
        )
