"""Finds lm-eval tasks by name and loads them, local ones from any working directory.

A local task is a YAML file below ``include_path``. lm-eval resolves the data files that it names against
the working directory; here the folder of the YAML file comes first, so that a task can be moved as one.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.errors import TaskError
from evolve.registry import did_you_mean
from evolve.score.groups import Aggregate, Leaf, aggregates, config_of, is_task, leaves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

_SHOWN = 8


class Group(NamedTuple):
    """A group of tasks with a score of its own.

    Attributes:
        name: Its name.
        leaves: Its tasks, in lm-eval's order.
        aggregates: How it makes one number of theirs, a metric each.
        folder: Where its YAML is.
    """

    name: str
    leaves: tuple[Leaf, ...]
    aggregates: tuple[Aggregate, ...]
    folder: Path


class Catalog:
    """The tasks that can be named: those below ``include_path``, then lm-eval's own.

    lm-eval's own index takes seconds to build; it is built only when a local task does not answer.
    """

    def __init__(self, include_path: str | None) -> None:
        from lm_eval.tasks import TaskManager

        self._folder = Path(include_path).absolute() if include_path else None
        if self._folder and not self._folder.is_dir():
            raise TaskError(
                f"include_path {include_path!r} is no folder: name the one with the task YAML files"
            )
        self._local = (
            TaskManager(include_path=str(self._folder), include_defaults=False) if self._folder else None
        )

    def group(self, name: str) -> Group | None:
        """Return the group ``name``; None where it is one task.

        Raises:
            TaskError: No such task or group; or one without a score of its own.
        """
        _, entry = self._find(name)
        if is_task(entry):
            return None
        if entry.kind.name == "TAG":
            names = sorted(entry.tags)
            raise TaskError(f"it is a tag of {_listed(names)}; a tag has no score: list those you want")
        config = config_of(entry)
        members = tuple(leaves(config, self._lookup))
        known = aggregates(config)
        names = [leaf.name for leaf in members]
        if not known:
            raise TaskError(
                f"it is a group of {_listed(names)}; without an aggregate_metric_list it has no score: "
                "list those you want one by one"
            )
        if twice := sorted({one for one in names if names.count(one) > 1}):
            raise TaskError(f"it is a group that holds {twice[0]!r} twice: list its tasks one by one")
        folder = entry.yaml_path.parent if entry.yaml_path is not None else Path()
        return Group(name, members, known, folder)

    def load(self, leaf: Leaf, seed: int, folder: Path | None = None) -> tuple[Any, list[Any]]:
        """Return an lm-eval task object, and the documents that it is scored on.

        Args:
            leaf: The task.
            seed: Seeds what the task's own code draws while it reads its data.
            folder: The folder of the group's YAML, for a task that is written there.

        Raises:
            TaskError: No such task, or its data cannot be read.
        """
        spec: dict[str, Any] = {"task": leaf.name, **leaf.changes}
        if leaf.inline and "dataset_path" in leaf.changes:
            manager = self._local or _builtin()
            spec |= _anchored(spec, folder or Path())
        else:
            manager, entry = self._find(leaf.name)
            if not is_task(entry):
                raise TaskError(f"{leaf.name!r} is no task")
            if manager is self._local:
                spec |= _anchored({**(entry.cfg or {}), **leaf.changes}, entry.yaml_path.parent)
        try:
            with _seeded(seed), _no_progress():
                # A group of one, because this is where lm-eval takes changes to a registered task.
                [task] = manager.load({"group": "evolve", "task": [spec]})["tasks"].values()
                docs = list(task.eval_docs)
                if not docs:
                    raise IndexError
        except Exception as error:
            raise TaskError(_about_data(error)) from error
        return task, docs

    def _lookup(self, name: str) -> Any:
        try:
            return self._find(name)[1]
        except TaskError:
            return None

    def _find(self, name: str) -> tuple[Any, Any]:
        if self._local is not None and name in self._local.task_index:
            return self._local, self._local.task_index[name]
        # Once the whole index is there, it is the quicker one.
        own = (None if _builtin.cache_info().currsize else _namesake(name)) or _builtin()
        if name in own.task_index:
            return own, own.task_index[name]
        known = list(own.all_tasks) + (list(self._local.all_tasks) if self._local else [])
        guess = did_you_mean(name, known)
        if not guess.startswith(" (did"):
            guess = "; `lm-eval ls tasks` lists lm-eval's own"
        raise TaskError(f"no task named {name!r}{guess}{self._unread()}")

    def _unread(self) -> str:
        """Name the local YAML files that lm-eval skipped without a word."""
        if self._folder is None:
            return "; set score.include_path for tasks of your own"
        from lm_eval.tasks._yaml_loader import load_yaml

        broken = []
        for path in sorted(self._folder.glob("**/*.yaml")):
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:
                broken.append(f"{path}: {_one_line(error)}")
        broken += [f"{path}: must end in .yaml" for path in sorted(self._folder.glob("**/*.yml"))]
        if broken:
            return "; not readable: " + "; ".join(broken[:_SHOWN])
        local = ", ".join(self._local.all_tasks[:_SHOWN]) if self._local else ""
        return f"; {self._folder} has {local or 'no task'}"


@functools.cache
def _builtin() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@functools.cache
def _namesake(name: str) -> Any:
    """Return an index of the one folder of lm-eval whose ``name.yaml`` is this task, or None.

    It costs a tenth of a second where the index of everything costs six.
    """
    import lm_eval.tasks

    if not re.fullmatch(r"[\w.+-]+", name):
        return None
    own = []
    for path in Path(lm_eval.tasks.__file__).parent.rglob(f"{name}.yaml"):
        manager = lm_eval.tasks.TaskManager(include_path=str(path.parent), include_defaults=False)
        entry = manager.task_index.get(name)
        if entry is not None and is_task(entry):
            own.append(manager)
    return own[0] if len(own) == 1 else None


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} tasks: {', '.join(names[:_SHOWN])}" + (", ..." if len(names) > _SHOWN else "")


def _about_data(error: Exception) -> str:
    """Return what went wrong while a task was loaded, and the mend."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, (StopIteration, IndexError)) or "EmptyDatasetError" in kinds:
        return "it has no items: its data, or the split that it is scored on, is empty"
    if isinstance(error, FileNotFoundError):
        return f"a data file is missing: {_one_line(error)} (relative ones belong beside the task's YAML)"
    if isinstance(error, ModuleNotFoundError):
        return f"it needs a package that is not installed: {_one_line(error)}"
    if isinstance(error, ConnectionError) or kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return f"its data is not on this machine and cannot be fetched: {_one_line(error)}"
    if "DatasetGenerationError" in kinds and error.__cause__ is not None:
        return f"its data cannot be read: {_one_line(error.__cause__)}"
    return f"it cannot be loaded: {type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _anchored(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the changes that make a local task's data paths absolute, ``folder`` tried first."""
    changes: dict[str, Any] = {}
    arguments = config.get("dataset_kwargs") or {}
    anchored = {
        key: _anchor(arguments[key], folder) for key in ("data_files", "data_dir") if key in arguments
    }
    if anchored != {key: arguments[key] for key in anchored}:
        changes["dataset_kwargs"] = {**arguments, **anchored}
    source = config.get("dataset_path")
    if isinstance(source, str) and not Path(source).is_absolute() and (folder / source).exists():
        changes["dataset_path"] = str((folder / source).absolute())
    return changes


def _anchor(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _anchor(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_anchor(part, folder) for part in value]
    if not isinstance(value, str) or "://" in value:
        return value
    path = folder.absolute() / value  # an absolute value wins over the folder
    if path.is_dir():
        return str(path)
    if path.exists():
        return glob.escape(str(path))  # datasets takes every path for a pattern
    if Path(value).is_absolute() or Path(value).exists():
        return value
    return f"{glob.escape(str(folder.absolute()))}/{value}"


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which some tasks shuffle their choices with, and put them back."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
