"""The Optuna study of a run: a journal in its folder, SQLite, or PostgreSQL.

A study holds the optimizer's state as a pickle: open a stranger's as you would run a program of theirs.
:func:`load_trials` reads values only and never unpickles.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evolve.errors import MissingDependency, RunError
from evolve.store.journal import JournalFile, open_journal
from evolve.store.url import StorageUrl, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from evolve.store.rundir import RunDir

RECIPE = "recipe"
"""The trial's user attribute that holds the hash of its recipe."""

SCORE = "score"
"""The trial's user attribute that holds the objective on all items where the sampler was told something
else; None: it was not asked all items. Absent: the trial's value is the score."""

_STATES: Mapping[str, Literal["complete", "failed", "running", "pruned"]] = {
    "COMPLETE": "complete",
    "FAIL": "failed",
    "RUNNING": "running",
    "PRUNED": "pruned",
}


@dataclass(frozen=True)
class TrialRow:
    """One trial for readers.

    Attributes:
        number: Its number in the study.
        state: How far it is.
        value: The objective on all items; None unless complete, and where only a part was asked.
        values: Gene name to value as the sampler sees it; not all of them in a trial that is being asked.
        recipe: Hash of its recipe; empty until it is told.
    """

    number: int
    state: Literal["complete", "failed", "running", "pruned"]
    value: float | None
    values: Mapping[str, float]
    recipe: str


def journal_path(run: RunDir) -> Path:
    """Return where the journal of a run lies."""
    return run.path / "study" / "journal.log"


def open_study(run: RunDir, url: str | None, study_name: str) -> Study:
    """Open the study for writing, and make it if it is not there.

    Call it under the run's lock: a journal's last record is cut off when its writer was killed in it.

    Args:
        run: The run.
        url: The config's ``search.storage``; None for a journal in the run's folder.
        study_name: Name of the study; larger values are better in it.

    Raises:
        RunError: The storage cannot be reached or is damaged.
    """
    import optuna

    storage_url = _resolve(run, url)
    where = storage_url.shown if storage_url else str(journal_path(run))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage_errors(where, storage_url):
        storage: Any
        if storage_url is None:
            storage = _replayed(open_journal(journal_path(run)))
        else:
            storage = _database(storage_url, for_reading=False)
        # Looked up first: Optuna's load_if_exists writes a record at every start.
        if not _has_study(storage, study_name):
            return optuna.create_study(
                storage=storage, sampler=_no_sampler(), study_name=study_name, direction="maximize"
            )
        return optuna.load_study(storage=storage, sampler=_no_sampler(), study_name=study_name)


def load_trials(run: RunDir, url: str | None, study_name: str) -> list[TrialRow]:
    """Read the trials of a study, oldest first; empty while there is no study. Never locks, never writes.

    Raises:
        RunError: The storage cannot be reached or is damaged.
    """
    import optuna

    storage_url = _resolve(run, url)
    where = storage_url.shown if storage_url else str(journal_path(run))
    with storage_errors(where, storage_url):
        storage: Any
        if storage_url is None:
            if not journal_path(run).exists():
                return []
            storage = _replayed(JournalFile(journal_path(run), readonly=True))
        else:
            if not _is_set_up(storage_url):
                return []
            storage = _database(storage_url, for_reading=True)
        try:
            if not _has_study(storage, study_name):
                return []
            study = optuna.load_study(storage=storage, sampler=_no_sampler(), study_name=study_name)
            return rows(study.get_trials(deepcopy=False))
        finally:
            if storage_url is not None:
                storage.remove_session()
                storage.engine.dispose()


def rows(trials: Iterable[FrozenTrial]) -> list[TrialRow]:
    """Return Optuna's trials as rows; one that is only enqueued is none yet."""
    return [
        TrialRow(
            number=trial.number,
            state=_STATES[trial.state.name],
            value=score_of(trial),
            values={name: float(value) for name, value in trial.params.items()},
            recipe=trial.user_attrs.get(RECIPE, ""),
        )
        for trial in trials
        if trial.state.name in _STATES
    ]


def score_of(trial: FrozenTrial) -> float | None:
    """Return a trial's objective on all items, whatever the sampler was told; None where it has none."""
    if trial.state.name != "COMPLETE":
        return None
    score: float | None = trial.user_attrs.get(SCORE, trial.value)
    return score


@contextlib.contextmanager
def storage_errors(where: str, url: StorageUrl | None = None) -> Iterator[None]:
    """Turn what a storage raises into a ``RunError`` without secrets.

    Args:
        where: The storage, as the user knows it.
        url: The URL whose secrets are blanked out.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        message = " ".join(str(getattr(cause, "orig", None) or cause).split())
        message = url.hide(message) if url else message
        # Not chained: the original error may name the password, and a traceback would show it.
        raise RunError(
            f"{where}: the storage failed: {message}. Mend that and run the same command again."
        ) from None
    except ImportError as error:
        if url is None:
            raise
        raise MissingDependency("a postgresql:// storage", "psycopg2-binary>=2.9") from error


def _resolve(run: RunDir, url: str | None) -> StorageUrl | None:
    # The folder that the run was made in, not the present one: Ray's workers have another.
    return None if url is None else resolve(url, Path(run.meta.get("created_in") or run.path))


def _replayed(journal: JournalFile) -> BaseStorage:
    """Read a whole journal. Records that are lost in its middle leave others that make no sense."""
    import optuna

    try:
        return optuna.storages.JournalStorage(journal)
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(journal.damage(f"does not follow from the records before it ({error!r})")) from error


def _database(url: StorageUrl, *, for_reading: bool) -> BaseStorage:
    import optuna

    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.file is not None:
        if not url.file.parent.is_dir():
            raise RunError(
                f"search.storage: {url.shown}: there is no folder {url.file.parent}. Make it and try again."
            )
        options["connect_args"] = {"timeout": 60}
    try:
        return optuna.storages.RDBStorage(
            # Optuna formats the URL, so a brace in a password would be taken for a field.
            url.real.replace("{", "{{").replace("}", "}}"),
            engine_kwargs=options,
            skip_table_creation=for_reading,
        )
    except RuntimeError as error:
        raise RunError(f"search.storage: {url.shown}: {url.hide(str(error))}") from None


def _is_set_up(url: StorageUrl) -> bool:
    """Whether a database has Optuna's tables, complete; looking at one that has not would write them."""
    import sqlalchemy

    if url.file is not None and not url.file.exists():
        return False
    engine = sqlalchemy.create_engine(url.real)
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("alembic_version"):
                return False
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))
            return found.first() is not None
    finally:
        engine.dispose()


def _has_study(storage: BaseStorage, study_name: str) -> bool:
    try:
        storage.get_study_id_from_name(study_name)
    except KeyError:
        return False
    return True


def _no_sampler() -> Any:
    """Return a sampler that costs nothing to make; the searcher sets its own before each ask."""
    import optuna

    return optuna.samplers.RandomSampler()
