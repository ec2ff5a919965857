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
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import TaskError
from evolve.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_SHOWN = 8
_TASKS = frozenset({"TASK", "PY_TASK"})


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

    def load(self, name: str, seed: int) -> tuple[Any, list[Any]]:
        """Return the lm-eval task object ``name``, and the documents that it is scored on.

        Args:
            name: Name of one task.
            seed: Seeds what the task's own code draws while it reads its data.

        Raises:
            TaskError: No such task, a group of tasks, or its data cannot be read.
        """
        manager, entry = self._find(name)
        if entry.kind.name not in _TASKS:
            raise TaskError(_about_group(name, manager, entry))
        changes = _anchored(entry.cfg or {}, entry.yaml_path.parent) if manager is self._local else {}
        try:
            with _seeded(seed), _no_progress():
                # A group of one, because this is where lm-eval takes changes to a registered task.
                loaded = manager.load({"group": "evolve", "task": [{"task": name, **changes}]})
                task = loaded["tasks"][name]
                docs = list(task.eval_docs)
                if not docs:
                    raise IndexError
        except Exception as error:
            raise TaskError(_about_data(error)) from error
        return task, docs

    def _find(self, name: str) -> tuple[Any, Any]:
        if self._local is not None and name in self._local.task_index:
            return self._local, self._local.task_index[name]
        own = _namesake(name) or _builtin()
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
        if entry is not None and entry.kind.name in _TASKS:
            own.append(manager)
    return own[0] if len(own) == 1 else None


def _about_group(name: str, manager: Any, entry: Any) -> str:
    members = _members(manager, entry, set())
    some = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
    return f"{name!r} is a group of {len(members)} tasks: list those you want one by one: {some}"


def _members(manager: Any, entry: Any, seen: set[str]) -> list[str]:
    """Return the tasks of a group or tag, those of the groups in it included."""
    if entry.kind.name == "TAG":
        names = sorted(entry.tags)
    else:
        listed = (entry.cfg or {}).get("task") or []
        names = [item.get("task") or item.get("group") if isinstance(item, dict) else item for item in listed]
    found: list[str] = []
    for name in names:
        inner = manager.task_index.get(name)
        if not isinstance(name, str) or name in seen:
            continue
        seen.add(name)
        nested = inner is not None and inner.kind.name not in _TASKS
        found.extend(_members(manager, inner, seen) if nested else [name])
    return found


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
