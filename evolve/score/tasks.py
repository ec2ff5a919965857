"""Tasks made ready: loaded, checked, and their items divided into search, holdout and few-shot pool.

Everything that is wrong with any task is found in one pass, so that ``evolve validate`` shows it at once.
"""

from __future__ import annotations

import difflib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import TaskError
from evolve.registry import did_you_mean
from evolve.score.arguments import check_arguments
from evolve.score.catalog import Catalog, Group
from evolve.score.groups import Aggregate, Leaf, Part, drawn
from evolve.score.items import Draw, Item, Shots, distinct, draw_shots, item_key, ranked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from evolve.config.schema import ScoreConfig, TaskConfig
    from evolve.types import Split

logger = logging.getLogger(__name__)

ConfigPath: TypeAlias = tuple[str | int, ...]
Problems: TypeAlias = list[tuple[ConfigPath, str]]


@dataclass
class LoadedTask:
    """One task, ready to be scored: an entry of the config, or a part of one that is a group.

    Attributes:
        config: Its block in the config; the one of a group's part is named ``group/member``.
        task: The lm-eval task object.
        metric: Name of the metric, without the filter.
        filter: Name of the filter that the metric is taken after.
        shots: Few-shot examples per prompt.
        sets: The items of each split, sorted by key, disjoint.
        pool: Keys of the few-shot pool in its order; empty without few-shot examples.
        duplicates: Items left out because another one says the same; a group's stand in its first part.
        part: What it is in a group, or None.
    """

    config: TaskConfig
    task: Any
    metric: str
    filter: str
    shots: int
    sets: Mapping[Split, tuple[Item, ...]] = field(default_factory=dict)
    pool: tuple[str, ...] = ()
    duplicates: int = 0
    part: Part | None = None

    @property
    def entry(self) -> str:
        """Name of the task or group that the config lists and that has a score."""
        return self.part.group if self.part else self.config.task

    @property
    def prefix(self) -> str:
        """What stands in front of an item's key in the score."""
        return f"{self.part.member}/" if self.part else ""


def sizes(tasks: Iterable[LoadedTask]) -> dict[str, dict[Split, int]]:
    """Return the number of items in each split, by the names in the config."""
    found: dict[str, dict[Split, int]] = {}
    for loaded in tasks:
        counts = found.setdefault(loaded.entry, {})
        for split, items in loaded.sets.items():
            counts[split] = counts.get(split, 0) + len(items)
    return found


def problems(config: ScoreConfig) -> Problems:
    """Return everything that is wrong with the tasks, as ``(path below score, message with the mend)``."""
    return load_tasks(config)[1]


def load_tasks(config: ScoreConfig) -> tuple[list[LoadedTask], Problems]:
    """Load, check and divide every task.

    Returns:
        The tasks in the order of the config, a group as its tasks, without those that have a problem; and the
        problems.
    """
    found = check_arguments(config)
    try:
        catalog = Catalog(config.include_path)
    except TaskError as error:
        return [], [*found, (("include_path",), str(error))]
    opened: dict[int, _Opened] = {}
    for index, entry in enumerate(config.tasks):
        try:
            opened[index] = _open(catalog, entry, config)
        except _TaskProblem as problem:
            found.append((("tasks", index, problem.key), f"task {entry.task!r}: {problem}"))
        except TaskError as error:
            found.append((("tasks", index, "task"), f"task {entry.task!r}: {error}"))
    tasks = []
    for index, draft in _divide(opened, config):
        if isinstance(draft, _TaskProblem):
            path = ("tasks", index, draft.key)
            found.append((path, f"task {config.tasks[index].task!r}: {draft}"))
        else:
            tasks.extend(draft)
    return tasks, found


class _TaskProblem(Exception):
    """A problem with the key of the task's block that has to be mended."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass
class _Opened:
    """An entry of the config, loaded, before its items are divided.

    Attributes:
        parts: The task, or those of the group, each with its few-shot pool.
        draw: Draws the items of all of them.
        total: Number of items.
        duplicates: Items left out so far.
        least: Fewest items of a split that has any.
    """

    parts: list[tuple[LoadedTask, Shots | None]]
    draw: Draw
    total: int
    duplicates: int
    least: int = 1

    @property
    def config(self) -> TaskConfig:
        return self.parts[0][0].config


def _open(catalog: Catalog, entry: TaskConfig, config: ScoreConfig) -> _Opened:
    group = catalog.group(entry.task)
    if group is not None:
        return _open_group(catalog, group, entry, config)
    loaded, items, duplicates, pool = _open_task(catalog, Leaf(entry.task), entry, config)
    draw = Draw(ranked(items, config.seed), lambda item: read(loaded.task, item.doc))
    return _Opened([(loaded, pool)], draw, len(items), duplicates)


def _open_group(catalog: Catalog, group: Group, entry: TaskConfig, config: ScoreConfig) -> _Opened:
    rule, metric = _aggregate(group, entry.metric)
    parts: list[tuple[LoadedTask, Shots | None]] = []
    members: dict[str, list[Item]] = {}
    tasks: dict[str, Any] = {}
    duplicates = 0
    for leaf in group.leaves:
        block = entry.model_copy(update={"task": f"{group.name}/{leaf.name}", "metric": metric})
        try:
            loaded, items, doubles, pool = _open_task(catalog, leaf, block, config, group.folder)
        except _TaskProblem as problem:
            raise _TaskProblem(problem.key, f"its task {leaf.name!r}: {problem}") from problem
        except TaskError as error:
            raise TaskError(f"its task {leaf.name!r}: {error}") from error
        loaded.part = Part(group.name, leaf.name, entry.metric, rule.by_size)
        parts.append((loaded, pool))
        members[leaf.name], tasks[leaf.name] = items, loaded.task
        duplicates += doubles
    if len({loaded.task.higher_is_better().get(loaded.metric) for loaded, _ in parts}) > 1:
        raise _TaskProblem("metric", f"{metric!r} is better when higher in some of its tasks only")

    def text(item: Item) -> str:
        return read(tasks[item.key.rpartition("/")[0]], item.doc)

    draw = Draw(drawn(members, config.seed, by_size=rule.by_size), text)
    least = 1 if rule.by_size else len(parts)
    return _Opened(parts, draw, sum(map(len, members.values())), duplicates, least)


def _aggregate(group: Group, wanted: str) -> tuple[Aggregate, str]:
    """Return how a group makes its number of a metric, and the metric of its tasks, with the filter."""
    metric, _, filter_name = wanted.partition(",")
    for rule in group.aggregates:
        if rule.metric == metric and (not filter_name or not rule.filters or filter_name in rule.filters):
            chosen = filter_name or (rule.filters[0] if rule.filters else "")
            return rule, f"{metric},{chosen}" if chosen else metric
    known = [",".join((rule.metric, *rule.filters[:1])) for rule in group.aggregates]
    raise _TaskProblem("metric", f"the group has no score of {wanted!r}; it has {', '.join(known)}")


def _open_task(
    catalog: Catalog, leaf: Leaf, entry: TaskConfig, config: ScoreConfig, folder: Path | None = None
) -> tuple[LoadedTask, list[Item], int, Shots | None]:
    """Return a task, its items without duplicates and few-shot examples, the duplicates, and the examples."""
    task, docs = catalog.load(leaf, config.seed, folder)
    if getattr(task, "MULTIMODAL", False):
        raise TaskError("it needs images or sound; only text tasks can be scored")
    if getattr(task, "UNSAFE_CODE", False) and not config.eval_args.get("confirm_run_unsafe_code"):
        raise TaskError(
            "it runs code that the model writes: score.eval_args.confirm_run_unsafe_code: true allows it"
        )
    metric, filter_name = _resolve_metric(task, entry.metric)
    shots = entry.num_fewshot
    if shots is None:
        shots = task.get_config("num_fewshot") or 0
    task.set_config("num_fewshot", shots)
    arguments = config.eval_args.get("gen_kwargs")
    if arguments and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", dict(arguments), update=True)
    items, duplicates = distinct(docs)
    pool = _shots(task, items, shots, config.seed) if shots else None
    if pool:
        items = [item for item in items if item.key not in pool.reserved]
    return LoadedTask(entry, task, metric, filter_name, shots), items, duplicates, pool


def _resolve_metric(task: Any, wanted: str) -> tuple[str, str]:
    metric, _, filter_name = wanted.partition(",")
    known = list(task.aggregation())
    listed = task.get_config("metric_list") or []
    # A metric given as a function may name its values only when it runs.
    open_ended = any(callable(item.get("metric")) for item in listed)
    if metric not in known and not open_ended:
        close = difflib.get_close_matches(metric, known, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        raise _TaskProblem("metric", f"it has no metric {metric!r}{guess}; it has {', '.join(known)}")
    if metric in known and task.higher_is_better().get(metric) is None:
        raise _TaskProblem("metric", f"its higher_is_better for {metric!r} is missing")
    filters = [ensemble.name for ensemble in getattr(task, "_filters", [])] or ["none"]
    if filter_name and filter_name not in filters:
        raise _TaskProblem("metric", f"it has no filter {filter_name!r}{did_you_mean(filter_name, filters)}")
    return metric, filter_name or filters[0]


def _shots(task: Any, items: list[Item], count: int, seed: int) -> Shots:
    from lm_eval.api.samplers import ContextSampler

    sampler = getattr(task, "sampler", None)
    if not isinstance(sampler, ContextSampler):
        raise _TaskProblem(
            "num_fewshot",
            "its few-shot examples are drawn by code of its own, and could be items of the holdout: set 0",
        )
    ordered = type(sampler) is not ContextSampler
    shots = draw_shots(list(sampler.df or []), items, count, seed=seed, ordered=ordered)
    if len(shots.docs) < count + _spare(task):
        raise _TaskProblem(
            "num_fewshot",
            f"{count} examples asked for, {len(shots.docs)} there are beside the scored items: set it lower",
        )
    return shots


def _spare(task: Any) -> int:
    """Return 1 where lm-eval draws one example more, to leave the scored item out."""
    from lm_eval.api.samplers import FirstNSampler

    same = task.fewshot_cfg.split == task.get_config("test_split")
    return int(same and not isinstance(task.sampler, FirstNSampler))


def read(task: Any, doc: Any) -> str:
    """Return everything that a model is shown or asked of ``doc``, as one text.

    Raises:
        TaskError: The task's template does not fit the item.
    """
    try:
        parts = [task.doc_to_text(doc), task.doc_to_target(doc)]
        if task.get_config("doc_to_choice") is not None:
            parts.append(task.doc_to_choice(doc))
    except Exception as error:
        raise TaskError(
            f"its template fails on item {item_key(doc)}: {type(error).__name__}: {error}"
        ) from error
    return json.dumps(parts, sort_keys=True, default=str)


def _divide(
    opened: dict[int, _Opened], config: ScoreConfig
) -> list[tuple[int, list[LoadedTask] | _TaskProblem]]:
    """Draw the holdout of every task first, so that no task's search items are another's holdout."""
    results: list[tuple[int, list[LoadedTask] | _TaskProblem]] = []
    drawn_sets = _draw_sets(opened, config)
    scored = set().union(*(draft.draw.seen for draft in opened.values())) if opened else set()
    for index, draft in opened.items():
        sets = drawn_sets[index]
        if isinstance(sets, _TaskProblem):
            results.append((index, sets))
            continue
        for loaded, _ in draft.parts:
            loaded.sets = {split: _own(loaded, items) for split, items in sets.items()}
        draft.parts[0][0].duplicates = missing = draft.duplicates + draft.draw.twins
        if missing:
            name = draft.parts[0][0].entry
            logger.info("task %s: %d items left out that repeat others", name, missing)
        try:
            for loaded, shots in draft.parts:
                _place_shots(loaded, shots, scored)
        except _TaskProblem as problem:
            results.append((index, problem))
        else:
            results.append((index, [loaded for loaded, _ in draft.parts]))
    return results


def _draw_sets(
    opened: dict[int, _Opened], config: ScoreConfig
) -> dict[int, dict[Split, tuple[Item, ...]] | _TaskProblem]:
    found: dict[int, dict[Split, tuple[Item, ...]] | _TaskProblem] = {}
    holdouts: dict[int, tuple[Item, ...]] = {}
    for index, draft in opened.items():
        try:
            holdouts[index] = draft.draw.take(config.holdout.items) if config.holdout.items else ()
        except TaskError as error:
            found[index] = _TaskProblem("task", str(error))
    held = set().union(*(opened[index].draw.seen for index in holdouts)) if holdouts else set()
    for index, holdout in holdouts.items():
        draft = opened[index]
        try:
            search = draft.draw.take(draft.config.items, avoid=held)
            _check_counts(draft, config, holdout, search)
            found[index] = {"search": search, "holdout": holdout}
        except TaskError as error:
            found[index] = _TaskProblem("task", str(error))
        except _TaskProblem as problem:
            found[index] = problem
    return found


def _own(loaded: LoadedTask, items: Iterable[Item]) -> tuple[Item, ...]:
    """Return those of an entry's items that are a task's own, by their own keys."""
    prefix = loaded.prefix
    return tuple(
        Item(item.key.removeprefix(prefix), item.doc) if prefix else item
        for item in items
        if item.key.rpartition("/")[0] == prefix[:-1]
    )


def _check_counts(
    draft: _Opened, config: ScoreConfig, holdout: tuple[Item, ...], search: tuple[Item, ...]
) -> None:
    wanted = draft.config.items
    usable = draft.total - draft.draw.twins
    if draft.least > 1 and any(0 < len(items) < draft.least for items in (holdout, search)):
        raise _TaskProblem(
            "items" if 0 < len(search) < draft.least else "task",
            f"its {draft.least} tasks count alike, so the search and the holdout need at least one item of "
            f"each: {len(search)} and {len(holdout)} are too few; set items and holdout.items higher",
        )
    if len(holdout) == config.holdout.items and len(search) == (wanted or len(search)) and search:
        return
    asked = f"items {wanted} + " if wanted else "at least 1 for the search + "
    reserved = sum(len(shots.reserved) for _, shots in draft.parts if shots)
    kept = f", {reserved} more are kept for few-shot prompts" if any(s for _, s in draft.parts) else ""
    mend = "lower items or holdout.items" if wanted else f"lower holdout.items (below {usable})"
    raise _TaskProblem(
        "items" if wanted else "task",
        f"it has {usable} usable items{kept}; asked for are {asked}"
        f"holdout.items {config.holdout.items}: {mend}",
    )


def _place_shots(loaded: LoadedTask, shots: Shots | None, scored: Collection[str]) -> None:
    """Give the sampler its pool, without any item that any task is scored on."""
    if shots is None:
        return
    task = loaded.task
    kept = []
    for doc in shots.docs:
        try:
            text = read(task, doc)
        except TaskError:  # a hand-written example may have other fields than the items
            text = ""
        if text not in scored and item_key(doc) not in scored:
            kept.append(doc)
    if len(kept) < loaded.shots + _spare(task):
        raise _TaskProblem(
            "num_fewshot",
            f"{loaded.shots} examples asked for, but all except {len(kept)} are scored items: "
            "set num_fewshot, items or holdout.items lower",
        )
    task.sampler.replace_df(kept)
    loaded.pool = tuple(item_key(doc) for doc in kept)
