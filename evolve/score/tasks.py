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
from evolve.score.catalog import Catalog
from evolve.score.items import Draw, Item, Shots, distinct, draw_shots, item_key, ranked

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from evolve.config.schema import ScoreConfig, TaskConfig
    from evolve.types import Split

logger = logging.getLogger(__name__)

ConfigPath: TypeAlias = tuple[str | int, ...]
Problems: TypeAlias = list[tuple[ConfigPath, str]]

EVAL_ARGS = ("gen_kwargs", "fewshot_as_multiturn", "confirm_run_unsafe_code", "write_out")
_OWN_ARGS = {
    "limit": "use `items`",
    "samples": "use `items`",
    "num_fewshot": "use `num_fewshot` of the task",
    "apply_chat_template": "use score.apply_chat_template",
    "system_instruction": "use score.system_instruction",
    "batch_size": "use score.batch_size",
}


@dataclass
class LoadedTask:
    """One task, ready to be scored.

    Attributes:
        config: Its block in the config.
        task: The lm-eval task object.
        metric: Name of the metric, without the filter.
        filter: Name of the filter that the metric is taken after.
        shots: Few-shot examples per prompt.
        sets: The items of each split, sorted by key, disjoint.
        pool: Keys of the few-shot pool in its order; empty without few-shot examples.
        duplicates: Items left out because another one says the same.
    """

    config: TaskConfig
    task: Any
    metric: str
    filter: str
    shots: int
    sets: Mapping[Split, tuple[Item, ...]] = field(default_factory=dict)
    pool: tuple[str, ...] = ()
    duplicates: int = 0


def problems(config: ScoreConfig) -> Problems:
    """Return everything that is wrong with the tasks, as ``(path below score, message with the mend)``."""
    return load_tasks(config)[1]


def load_tasks(config: ScoreConfig) -> tuple[list[LoadedTask], Problems]:
    """Load, check and divide every task.

    Returns:
        The tasks in the order of the config, without those that have a problem; and the problems.
    """
    found = _check_arguments(config)
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
            tasks.append(draft)
    return tasks, found


class _TaskProblem(Exception):
    """A problem with the key of the task's block that has to be mended."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass
class _Opened:
    """A loaded task before its items are divided."""

    loaded: LoadedTask
    draw: Draw
    total: int
    duplicates: int
    shots: Shots | None


def _check_arguments(config: ScoreConfig) -> Problems:
    found: Problems = []
    for key in config.eval_args:
        if key in _OWN_ARGS:
            found.append((("eval_args", key), f"cannot be passed through: {_OWN_ARGS[key]}"))
        elif key not in EVAL_ARGS:
            close = difflib.get_close_matches(key, EVAL_ARGS, n=1)
            mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(EVAL_ARGS)}"
            found.append((("eval_args", key), f"lm-eval's evaluate has no such argument here ({mend})"))
    return found


def _open(catalog: Catalog, entry: TaskConfig, config: ScoreConfig) -> _Opened:
    task, docs = catalog.load(entry.task, config.seed)
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
    loaded = LoadedTask(entry, task, metric, filter_name, shots)
    draw = Draw(ranked(items, config.seed), lambda doc: read(task, doc))
    return _Opened(loaded, draw, len(items), duplicates, pool)


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


def _divide(opened: dict[int, _Opened], config: ScoreConfig) -> list[tuple[int, LoadedTask | _TaskProblem]]:
    """Draw the holdout of every task first, so that no task's search items are another's holdout."""
    failed: dict[int, _TaskProblem] = {}
    holdouts: dict[int, tuple[Item, ...]] = {}
    for index, draft in opened.items():
        try:
            holdouts[index] = draft.draw.take(config.holdout.items) if config.holdout.items else ()
        except TaskError as error:
            failed[index] = _TaskProblem("task", str(error))
    held = set().union(*(opened[index].draw.seen for index in holdouts)) if holdouts else set()
    searches: dict[int, tuple[Item, ...]] = {}
    for index in holdouts:
        draft = opened[index]
        try:
            searches[index] = draft.draw.take(draft.loaded.config.items, avoid=held)
            _check_counts(draft, config, holdouts[index], searches[index])
        except TaskError as error:
            failed[index] = _TaskProblem("task", str(error))
        except _TaskProblem as problem:
            failed[index] = problem
    scored = set().union(*(draft.draw.seen for draft in opened.values())) if opened else set()
    results: list[tuple[int, LoadedTask | _TaskProblem]] = []
    for index, draft in opened.items():
        if index in failed:
            results.append((index, failed[index]))
            continue
        loaded = draft.loaded
        loaded.sets = {"search": searches[index], "holdout": holdouts[index]}
        loaded.duplicates = draft.duplicates + draft.draw.twins
        if loaded.duplicates:
            logger.info(
                "task %s: %d items left out that repeat others", loaded.config.task, loaded.duplicates
            )
        try:
            _place_shots(draft, scored)
        except _TaskProblem as problem:
            results.append((index, problem))
        else:
            results.append((index, loaded))
    return results


def _check_counts(
    draft: _Opened, config: ScoreConfig, holdout: tuple[Item, ...], search: tuple[Item, ...]
) -> None:
    wanted = draft.loaded.config.items
    usable = draft.total - draft.draw.twins
    if len(holdout) == config.holdout.items and len(search) == (wanted or len(search)) and search:
        return
    asked = f"items {wanted} + " if wanted else "at least 1 for the search + "
    kept = f", {len(draft.shots.reserved)} more are kept for few-shot prompts" if draft.shots else ""
    mend = "lower items or holdout.items" if wanted else f"lower holdout.items (below {usable})"
    raise _TaskProblem(
        "items" if wanted else "task",
        f"it has {usable} usable items{kept}; asked for are {asked}"
        f"holdout.items {config.holdout.items}: {mend}",
    )


def _place_shots(draft: _Opened, scored: Collection[str]) -> None:
    """Give the sampler its pool, without any item that any task is scored on."""
    if draft.shots is None:
        return
    loaded, task = draft.loaded, draft.loaded.task
    kept = []
    for doc in draft.shots.docs:
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
