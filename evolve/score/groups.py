"""Groups of lm-eval's tasks: which tasks are in one, and the one score that it has.

A group is one task of the objective: one weight, one interval, one limit of ``retention``. Its value is
lm-eval's: the mean over all tasks in it, those of nested groups as well, each weighted by its number of items
or all alike, as the group's ``aggregate_metric_list`` says. The key of one of its items is ``member/key``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import TaskError
from evolve.score.items import Item, rank
from evolve.score.metrics import standard_error
from evolve.types import TaskScore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_TASKS = frozenset({"TASK", "PY_TASK"})


@dataclass(frozen=True)
class Leaf:
    """A task of a group.

    Attributes:
        name: Its name.
        changes: What the groups around it change of its config.
        inline: Whether ``changes`` is its whole config: nothing is registered by its name.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    inline: bool = False


@dataclass(frozen=True)
class Aggregate:
    """How a group makes one number of its tasks' metric.

    Attributes:
        metric: Name of the metric.
        filters: Filters that are aggregated; empty: any.
        by_size: Whether a task counts by its number of items; else all tasks count alike.
    """

    metric: str
    filters: tuple[str, ...]
    by_size: bool


class Part(NamedTuple):
    """A loaded task as a part of a group.

    Attributes:
        group: The group.
        member: Its own name.
        metric: What the config calls the group's metric.
        by_size: Whether it counts by its number of items.
    """

    group: str
    member: str
    metric: str
    by_size: bool


def aggregates(config: Mapping[str, Any]) -> tuple[Aggregate, ...]:
    """Return the aggregations that a group's config names.

    Raises:
        TaskError: One of them is no mean.
    """
    from lm_eval.config.group import GroupConfig

    try:
        listed = GroupConfig(
            group="", aggregate_metric_list=config.get("aggregate_metric_list")
        ).aggregate_metric_list
    except (TypeError, ValueError) as error:
        raise TaskError(f"its aggregate_metric_list cannot be read: {error}") from error
    found = []
    for one in listed or []:
        if isinstance(one, dict) or one.aggregation != "mean":
            raise TaskError("its aggregate_metric_list has a function of its own: list its tasks one by one")
        found.append(Aggregate(one.metric, tuple(one.filter_list or ()), bool(one.weight_by_size)))
    return tuple(found)


def leaves(
    config: Mapping[str, Any], find: Callable[[str], Any], changes: Mapping[str, Any] | None = None
) -> Iterator[Leaf]:
    """Yield the tasks of a group, nested groups and tags opened, in lm-eval's order.

    Args:
        config: The group's config.
        find: Name to lm-eval's index entry, or None.
        changes: What outer groups change; an outer change wins over an inner default.
    """
    from dataclasses import fields

    from lm_eval.config.group import GroupConfig

    own = {one.name for one in fields(GroupConfig)}
    changes = {**{key: value for key, value in config.items() if key not in own}, **(changes or {})}
    listed = config.get("task") or []
    for member in [listed] if isinstance(listed, str) else listed:
        given = {"task": member} if isinstance(member, str) else dict(member)
        name = str(given.get("group") or given.get("task"))
        more = {**changes, **{key: value for key, value in given.items() if key not in own}}
        entry = find(name)
        if entry is None and "group" in given:
            yield from leaves(given, find, changes)
        elif entry is None:
            yield Leaf(name, more, inline=True)
        elif entry.kind.name == "GROUP":
            yield from leaves(config_of(entry), find, more)
        elif entry.kind.name == "TAG":
            yield from (Leaf(task, more) for task in sorted(entry.tags))
        else:
            yield Leaf(name, more)


def config_of(entry: Any) -> dict[str, Any]:
    """Return the config of an index entry, its functions resolved."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.yaml_path is None:
        return dict(entry.cfg or {})
    return dict(load_yaml(entry.yaml_path, resolve_func=True))


def is_task(entry: Any) -> bool:
    """Whether an index entry is one task, no group and no tag."""
    return entry.kind.name in _TASKS


def item_of(member: str, item: Item) -> Item:
    """Return an item of a task as an item of the group."""
    return Item(f"{member}/{item.key}", item.doc)


def drawn(members: Mapping[str, Sequence[Item]], seed: int, *, by_size: bool) -> list[Item]:
    """Return the items of a group in the order of the draw.

    Where tasks count by size, every item is as likely as any other. Where all count alike, the tasks take
    turns, so that each has as many items as the others as long as it has any.
    """
    ordered = [
        sorted((item_of(member, item) for item in items), key=lambda item: rank(item.key, seed))
        for member, items in members.items()
    ]
    if by_size:
        return sorted((item for items in ordered for item in items), key=lambda item: rank(item.key, seed))
    longest = max(map(len, ordered), default=0)
    return [items[place] for place in range(longest) for items in ordered if place < len(items)]


def gathered(scores: Mapping[str, TaskScore], parts: Mapping[str, Part | None]) -> dict[str, TaskScore]:
    """Return scores with those of the tasks of a group replaced by the group's.

    Args:
        scores: Name of a loaded task to its score.
        parts: Name of a loaded task to its place in a group, or None.
    """
    found: dict[str, TaskScore] = {}
    members: dict[str, dict[str, TaskScore]] = {}
    shared: dict[str, Part] = {}
    for name, score in scores.items():
        part = parts[name]
        if part is None:
            found[name] = score
            continue
        found.setdefault(part.group, score)  # it keeps its place
        members.setdefault(part.group, {})[part.member] = score
        shared[part.group] = part
    for name, part in shared.items():
        found[name] = combined(members[name], metric=part.metric, by_size=part.by_size)
    return found


def combined(scores: Mapping[str, TaskScore], *, metric: str, by_size: bool) -> TaskScore:
    """Return the score of a group from those of its tasks.

    Items keep their scores where each counts the same. Where tasks of different sizes count alike, an item is
    its influence on the value: centred on it, and stronger where its task is smaller; the spread of the items
    is then that within the tasks.

    Args:
        scores: Task to its score; at least one.
        metric: What the config calls the metric.
        by_size: Whether a task counts by its number of items.
    """
    sizes = {name: len(score.items) for name, score in scores.items()}
    total = sum(sizes.values())
    share = {name: size / total if by_size else 1 / len(scores) for name, size in sizes.items()}
    value = math.fsum(share[name] * score.value for name, score in scores.items())
    items: dict[str, float] = {}
    even = by_size or len(set(sizes.values())) == 1
    for name, score in scores.items():
        strength = share[name] * total / sizes[name]
        for key, own in score.items.items():
            items[f"{name}/{key}"] = own if even else value + strength * (own - score.value)
    chances = [(share[name], score.chance) for name, score in scores.items()]
    known = [(part, chance) for part, chance in chances if chance is not None]
    return TaskScore(
        metric=metric,
        value=value,
        stderr=standard_error(list(items.values())),
        higher_is_better=next(iter(scores.values())).higher_is_better,
        items={key: items[key] for key in sorted(items)},
        chance=math.fsum(part * chance for part, chance in known) if len(known) == len(chances) else None,
    )
