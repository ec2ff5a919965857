"""One record per candidate: what was built, what came of it, how often it was tried."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evolve.store.items import NAME
from evolve.types import Job, Recipe, Scored, canonical_json, outcome_from_json, outcome_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from evolve.store.items import ItemTable
    from evolve.types import Items, Outcome, Split


@dataclass(frozen=True)
class Record:
    """The outcome of one job, as it lies in the run's folder.

    Attributes:
        recipe: What was built.
        split: The items that it was scored on.
        score_key: Hash of everything that decides a score.
        outcome: What came of it, the log left out.
        attempts: How often it was started.
        at: When it was recorded, as ISO 8601 in UTC.
        items: Which items of the split it is about; empty: all.
    """

    recipe: Recipe
    split: Split
    score_key: str
    outcome: Outcome
    attempts: int
    at: str
    items: Items = ()

    @property
    def job(self) -> Job:
        """The job that it answers."""
        return Job(self.recipe, self.split, self.items)


ITEMS = "items_in"
"""Key of a record whose items are in a file of their own; absent in records of format 1, which hold them."""


def to_text(record: Record) -> str:
    """Return the JSON of a record, the metric of every item left out."""
    document = {
        "recipe": json.loads(record.recipe.text),
        "hash": record.recipe.hash,
        "split": record.split,
        "score_key": record.score_key,
        "outcome": outcome_to_json(record.outcome, items=False),
        ITEMS: NAME,
        "attempts": record.attempts,
        "at": record.at,
    }
    if record.items:
        document["items"] = record.items
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def from_text(text: str, tables: Callable[[str], ItemTable]) -> Record:
    """Read what :func:`to_text` wrote.

    Args:
        text: The JSON.
        tables: Score key to the file of items.

    Raises:
        ValueError: It is damaged: no JSON, something is missing, or the recipe is not the one of the hash.
    """
    try:
        document: dict[str, Any] = json.loads(text)
        recipe = Recipe(canonical_json(document["recipe"]))
        record = Record(
            recipe=recipe,
            split=document["split"],
            score_key=document["score_key"],
            outcome=outcome_from_json(document["outcome"]),
            attempts=document["attempts"],
            at=document["at"],
            items=tuple((task, tuple(keys)) for task, keys in document.get("items", ())),
        )
        stored = document["hash"]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a record: {error!r}") from error
    if recipe.hash != stored:
        raise ValueError(f"the recipe hashes to {recipe.hash}, not to {stored}")
    return _with_items(record, tables(record.score_key)) if ITEMS in document else record


def items_of(outcome: Outcome) -> dict[str, Mapping[str, float]]:
    """Return task to the metric of each item; empty for a failure."""
    if not isinstance(outcome, Scored):
        return {}
    return {name: task.items for name, task in outcome.tasks.items()}


def _with_items(record: Record, table: ItemTable) -> Record:
    if not isinstance(record.outcome, Scored):
        return record
    tasks = {}
    for name, task in record.outcome.tasks.items():
        items = table.get(record.job.key, name)
        if items is None:
            raise ValueError(f"{NAME} lacks the items of task {name!r}")
        tasks[name] = replace(task, items=items)
    return replace(record, outcome=replace(record.outcome, tasks=tasks))
