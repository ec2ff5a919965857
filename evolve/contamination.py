"""Looks for text that items share with each other, or with the texts that a recipe reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from evolve.config.load import Loaded
    from evolve.errors import Problem
    from evolve.score.overlap import Index, Overlap, Place, Template
    from evolve.score.scorers.base import ModelScorer
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


def check(loaded: Loaded, tasks: Sequence[LoadedTask], scorers: Mapping[str, ModelScorer]) -> Found:
    """Compare search with holdout items, and both with every data file that a stage of the config names.

    The texts of scorers are held against the data files alone: they are pieces of one text, which may well
    repeat itself.

    Args:
        loaded: The config.
        tasks: Its tasks, items drawn.
        scorers: Its scorers by name.
    """
    score = loaded.config.score
    index = index_of(tasks, scorers)
    if score is None or not index:
        return Found([], (), ())
    problems = []
    warnings = [_without(template) for template in index.templates]
    for task, message in _sharing(index, {loaded.entry for loaded in tasks}):
        place = next(number for number, entry in enumerate(score.tasks) if entry.task == task)
        if score.shared_text == "error":
            mend = "take the doubles out of the data, or set score.shared_text: report"
            problems.append(loaded.problem(("score", "tasks", place, "task"), f"{message}: {mend}"))
        else:
            warnings.append(message)
    overlaps = index.overlaps(corpora(loaded))
    warnings += [sentence(one) for one in overlaps if one.shared]
    warnings += dict.fromkeys(unread(one) for one in overlaps if one.unread)
    return Found(problems, tuple(warnings), tuple(overlaps))


def index_of(tasks: Iterable[LoadedTask], scorers: Mapping[str, ModelScorer]) -> Index:
    """Return the runs of words of all items of some tasks, and of the texts of some scorers."""
    from evolve.score.overlap import Index, Place, item_text
    from evolve.score.scorers.base import HoldsTexts

    texts = {
        Place(loaded.entry, split, f"{loaded.prefix}{item.key}"): item_text(loaded.task, item.doc)
        for loaded in tasks
        for split, items in loaded.sets.items()
        for item in items
    }
    texts |= {
        Place(name, split, item.key): item.doc
        for name, scorer in scorers.items()
        if isinstance(scorer, HoldsTexts)
        for split, items in scorer.texts.items()
        for item in items
    }
    return Index(texts)


def corpora(loaded: Loaded) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield the data files and folders that the stages name, each once: its path, and its documents.

    The documents of what cannot be read raise UserError or OSError.
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


def unread(overlap: Overlap) -> str:
    """Return that a text could not be read, as a sentence."""
    return (
        f"{overlap.corpus} could not be read to its end, so nobody knows what items share with the rest: "
        f"{overlap.unread}"
    )


def _documents(path: str) -> Iterator[str]:
    """Yield the texts of a file or folder: of a conversation, all its turns as one."""
    from evolve.conversations import said
    from evolve.training.documents import Documents

    found = Documents(path, read=said)
    yield from found.texts(range(len(found)))


def _without(template: Template) -> str:
    """Return what was not compared, as a sentence."""
    return (
        f"words that more than a quarter of the items of {template.task} have in common are its template, "
        f'and are not compared: "{template.words}" stands in {template.holding} of {template.items}'
    )


def _sharing(index: Index, tasks: set[str]) -> Iterator[tuple[str, str]]:
    by_task: dict[str, list[tuple[Place, Place]]] = {}
    for search, held in index.sharing(tasks).items():
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
