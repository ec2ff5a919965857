"""A score block without a config: the tasks that a command line names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.errors import TaskError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evolve.config.schema import ScoreConfig
    from evolve.score.catalog import Catalog


def score_block(
    tasks: Iterable[str], *, items: int | None, include_path: str | None, backend: str
) -> ScoreConfig:
    """Return a score block without a holdout.

    Args:
        tasks: Each ``TASK`` or ``TASK:METRIC``, several in one text with commas between them. Without a
            metric the task's first one counts.
        items: Items per task, or None for all.
        include_path: Folder with local tasks.
        backend: Engine.

    Raises:
        UserError: A task does not exist, or the block is wrong.
    """
    from pydantic import ValidationError

    from evolve.config.schema import ScoreConfig
    from evolve.score.catalog import Catalog

    catalog: Catalog | None = None
    entries: list[dict[str, Any]] = []
    for text in (part.strip() for one in tasks for part in one.split(",")):
        name, _, metric = text.partition(":")
        if not name:
            continue
        if not metric:
            catalog = catalog or Catalog(include_path)
            metric = _first_metric(catalog, name)
        entries.append({"task": name, "metric": metric, "items": items})
    block = {"tasks": entries, "holdout": {"items": 0}, "include_path": include_path, "backend": backend}
    try:
        return ScoreConfig.model_validate(block)
    except ValidationError as error:
        raise UserError("--tasks: " + "; ".join(str(one["msg"]) for one in error.errors())) from error


def _first_metric(catalog: Catalog, name: str) -> str:
    from evolve.score.groups import Leaf

    try:
        group = catalog.group(name)
        if group is not None:
            return group.aggregates[0].metric
        task, _ = catalog.load(Leaf(name), 0)
    except TaskError as error:
        raise TaskError(f"--tasks: task {name!r}: {error}") from error
    metrics = list(task.aggregation())
    if not metrics:
        raise TaskError(f"--tasks: task {name!r} names no metric: write {name}:METRIC")
    return str(metrics[0])
