"""A run's folder: everything that a run needs to go on after a kill, and that a report is made of.

.. code-block:: text

    runs/NAME/
      run.json                        format, name, version of evolve; written last: the folder is whole
      config.yaml identity.json parents.json    what is searched; config.1.yaml ... are replaced ones
      state.json                      phase and counts, for people who look at the run
      lock island.lock state.lock     held with flock; they die with their holder
      stop                            present: the run is asked to stop
      study/journal.log               Optuna's journal
      candidates/<score_key>/<job>.json, logs/<job>.log
      candidates/<score_key>/items.arrow    the metric of every item of every candidate
      candidates/<score_key>/parts/<job>.json    scores of some of a candidate's items, while it races
      report.html report.json export/
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evolve
from evolve.errors import RunError
from evolve.store.atomic import explained, is_temporary, make_folder, sweep, write_text
from evolve.store.items import NAME, ItemTable
from evolve.store.locks import hold
from evolve.store.records import Record, from_text, items_of, to_text
from evolve.types import Parent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from evolve.types import Job, Outcome

__all__ = ["FORMAT", "Record", "RunDir"]

FORMAT = 2
"""Number of the layout above. A reader refuses a higher one; in format 1 a record holds its items itself."""

logger = logging.getLogger(__name__)

_CONFIG, _IDENTITY, _PARENTS = "config.yaml", "identity.json", "parents.json"
_BEFORE_RUN_JSON = {_CONFIG, _IDENTITY, _PARENTS, "lock"}
_PARTS = "parts"
_STATE_LOCK_SECONDS = 10.0


class RunDir:
    """The folder of one run. Cheap to make, safe to pickle: it holds a path and no open file.

    Attributes:
        path: Absolute, since Ray changes the working directory of its workers.
        meta: The content of run.json: format, name, evolve, created, created_in.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self._tables: dict[str, ItemTable] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tables": {}}

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str,
        config_text: str,
        identity: dict[str, Any],
        parents: Mapping[str, Parent],
    ) -> RunDir:
        """Make the folder of a new run.

        Args:
            path: The folder; absent, empty, or left by a killed ``create``.
            name: The run's name.
            config_text: The resolved config.
            identity: The config as it decides results; compared on resume.
            parents: Name to parent, with contents.

        Raises:
            RunError: There is a run already, somebody else's files are there, or it cannot be written.
        """
        path = Path(path).absolute()
        _refuse_foreign(path)
        make_folder(path)
        meta = {
            "format": FORMAT,
            "name": name,
            "evolve": evolve.__version__,
            "created": _now(),
            "created_in": str(Path.cwd()),
        }
        with hold(path / "lock", f"evolve run, making the folder of {name}"):
            _refuse_foreign(path)
            run = cls(path, meta)
            run._write_config(config_text, identity, parents)
            write_text(path / "run.json", _json(meta))
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open the folder of a run. Reads, never writes.

        Raises:
            RunError: There is no run, it is of a newer format, or run.json is damaged.
        """
        path = Path(path).absolute()
        file = path / "run.json"
        with explained(file, "read"):
            if not file.exists():
                raise RunError(f"{path}: there is no run here (no run.json). `evolve ls` lists the runs.")
        meta = _read_object(file)
        number = meta.get("format")
        if not isinstance(number, int) or not isinstance(meta.get("name"), str):
            raise RunError(f"{file}: damaged: it has no format or no name. Restore it from a backup.")
        if number > FORMAT:
            raise RunError(
                f"{path}: written by evolve {meta.get('evolve')} in format {number}; this is evolve "
                f"{evolve.__version__}, which reads formats up to {FORMAT}. Install evolve "
                f"{meta.get('evolve')} or newer."
            )
        return cls(path, meta)

    @property
    def working_folder(self) -> Path:
        """What paths in the config are relative to: where the run was started, else the working directory."""
        place = Path(self.meta.get("created_in") or Path.cwd())
        return place if place.is_dir() else Path.cwd()

    def config_text(self) -> str:
        """Return the resolved config."""
        return _read_text(self.path / _CONFIG)

    def identity(self) -> dict[str, Any]:
        """Return the config as it decides results."""
        return _read_object(self.path / _IDENTITY)

    def parents(self) -> dict[str, Parent]:
        """Return name to parent."""
        file = self.path / _PARENTS
        try:
            return {name: Parent(**fields) for name, fields in _read_object(file).items()}
        except TypeError as error:
            raise RunError(f"{file}: damaged ({error}). Restore it from a backup.") from error

    def replace_config(
        self, config_text: str, identity: dict[str, Any], parents: Mapping[str, Parent]
    ) -> None:
        """Write a new config; the old one stays beside it as config.1.yaml, identity.1.json, and so on."""
        number = 1
        while any(self.path.glob(f"*.{number}.*")):
            number += 1
        for name in (_CONFIG, _IDENTITY, _PARENTS):
            stem, suffix = name.split(".")
            write_text(self.path / f"{stem}.{number}.{suffix}", _read_text(self.path / name))
        self._write_config(config_text, identity, parents)

    def _write_config(
        self, config_text: str, identity: dict[str, Any], parents: Mapping[str, Parent]
    ) -> None:
        write_text(self.path / _CONFIG, config_text)
        write_text(self.path / _PARENTS, _json({name: asdict(parent) for name, parent in parents.items()}))
        # Last: the next start compares it, so a kill before this line shows the change again.
        write_text(self.path / _IDENTITY, _json(identity))

    @contextlib.contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Hold the driver's lock; what killed writers left is removed first.

        Args:
            command: What the driver does, shown to whoever finds the lock taken.

        Raises:
            RunError: Another driver works on the run. Names its pid, host, command and start.
        """
        with hold(self.path / "lock", command):
            self._sweep()
            if self.meta["format"] < FORMAT:
                # An older evolve would take the records that are written from now on for damaged.
                self.meta = {**self.meta, "format": FORMAT}
                write_text(self.path / "run.json", _json(self.meta))
            yield

    def island_lock(self, wait: float) -> AbstractContextManager[None]:
        """Hold the island's lock: only its holder writes the study.

        Args:
            wait: Seconds to wait for an island that is about to end.

        Raises:
            RunError: Another island still holds it.
        """
        return hold(self.path / "island.lock", "the island of this run", wait=wait)

    def _sweep(self) -> None:
        candidates = self.path / "candidates"
        with explained(self.path):
            keys = (
                [folder for folder in candidates.iterdir() if folder.is_dir()] if candidates.is_dir() else []
            )
            parts = [folder / _PARTS for folder in keys if (folder / _PARTS).is_dir()]
            for folder in (self.path, self.path / "study", self.path / "logs", candidates, *keys, *parts):
                sweep(folder)

    def outcome(self, job: Job, score_key: str) -> Outcome | None:
        """Return the recorded outcome of a job, or None.

        A damaged record is renamed to ``*.damaged`` and counts as none. For the driver: it may write.
        """
        file = self._candidate(job, score_key)
        try:
            record = self._read_record(file)
            # By key: the text of a recipe names a file beside its content, and the file may have moved.
            if record.job.key != job.key:
                raise ValueError(f"it holds the job {record.job.key}")
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: damaged (%s); set aside, the candidate counts as not scored", file, error)
            with explained(file):
                file.rename(_free_name(file.with_name(file.name + ".damaged")))
            return None
        return record.outcome

    def record(self, job: Job, outcome: Outcome, *, score_key: str, attempts: int) -> None:
        """Write an outcome, on the disk when this returns; its log goes to ``logs/``."""
        file = self._candidate(job, score_key)
        make_folder(file.parent)
        if outcome.log:
            make_folder(self.path / "logs")
            write_text(self.path / "logs" / f"{job.key}.log", outcome.log, durable=False)
        self._items(score_key).append(job.key, items_of(outcome))
        record = Record(job.recipe, job.split, score_key, outcome, attempts, _now(), job.items)
        write_text(file, to_text(record))

    def records(self) -> list[Record]:
        """Return every record, oldest first. Damaged ones are left out with a warning. Never writes.

        Records of parts are not among them.
        """
        return self._read_records("*/*.json")

    def parts(self) -> list[Record]:
        """Return the records of parts of a split, as :meth:`records` does the others."""
        return self._read_records(f"*/{_PARTS}/*.json")

    def _read_records(self, pattern: str) -> list[Record]:
        records = []
        for file in sorted((self.path / "candidates").glob(pattern)):
            if is_temporary(file.name):
                continue
            try:
                records.append(self._read_record(file))
            except FileNotFoundError:
                continue
            except ValueError as error:
                logger.warning("%s: damaged (%s); left out", file, error)
        return sorted(records, key=lambda record: (record.at, record.job.key))

    def _read_record(self, file: Path) -> Record:
        try:
            return from_text(file.read_text(encoding="utf-8"), self._items)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RunError(f"{file}: cannot be read: {error.strerror or error}.") from error

    def _items(self, score_key: str) -> ItemTable:
        if score_key not in self._tables:
            self._tables[score_key] = ItemTable(self._folder(score_key) / NAME)
        return self._tables[score_key]

    def _folder(self, score_key: str) -> Path:
        if not score_key or score_key.startswith(".") or "/" in score_key or "\0" in score_key:
            raise ValueError(f"a score key names a folder, and {score_key!r} cannot")
        return self.path / "candidates" / score_key

    def _candidate(self, job: Job, score_key: str) -> Path:
        folder = self._folder(score_key)
        return (folder / _PARTS if job.items else folder) / f"{job.key}.json"

    def state(self) -> dict[str, Any]:
        """Return what :meth:`write_state` put together; empty before the first. Never writes."""
        file = self.path / "state.json"
        if not file.exists():
            return {}
        try:
            return _read_object(file)
        except RunError as error:
            logger.warning("%s It is only for display and is begun anew.", error)
            return {}

    def write_state(self, **changes: Any) -> None:
        """Change some entries of state.json and set ``updated`` to now.

        Driver and island both write it, so a short lock guards the reading and writing.
        """
        with hold(self.path / "state.lock", "state", wait=_STATE_LOCK_SECONDS):
            state = {**self.state(), **changes, "updated": time.time()}
            write_text(self.path / "state.json", _json(state), durable=False)

    def request_stop(self) -> None:
        """Ask whoever works on the run to stop soon."""
        with explained(self.path / "stop"):
            (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        """Whether :meth:`request_stop` was called since the last :meth:`clear_stop`."""
        return (self.path / "stop").exists()

    def clear_stop(self) -> None:
        """Forget earlier requests to stop."""
        with explained(self.path / "stop"):
            (self.path / "stop").unlink(missing_ok=True)


def _refuse_foreign(path: Path) -> None:
    """Raise unless a new run may be made in ``path``."""
    with explained(path, "read"):
        if (path / "run.json").exists():
            raise RunError(f"{path}: there is a run here already. `evolve resume` goes on with it.")
        if not path.exists():
            return
        names = {entry.name for entry in os.scandir(path)}
    foreign = sorted(name for name in names - _BEFORE_RUN_JSON if not is_temporary(name))
    if foreign:
        raise RunError(
            f"{path}: not a run's folder, and not empty (it holds {foreign[0]!r}). "
            "Choose another name for the run, or another folder with --runs."
        )


def _read_text(file: Path) -> str:
    with explained(file, "read"):
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunError(f"{file}: damaged: not UTF-8. Restore it from a backup.") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file}: damaged: {error}. Restore it from a backup.") from error
    if not isinstance(found, dict):
        raise RunError(f"{file}: damaged: not a JSON object. Restore it from a backup.")
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
