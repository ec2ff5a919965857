"""What every storage has to do: a journal, SQLite, and a real PostgreSQL server."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import MissingDependency, RunError
from evolve.store.rundir import RunDir
from evolve.store.study import TrialRow, journal_path, load_trials, open_study

from . import postgres

if TYPE_CHECKING:
    import optuna

FORK = multiprocessing.get_context("fork")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def fill(study: optuna.Study, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        trial = study.ask()
        trial.suggest_float("größe", 0.0, 1.0)
        trial.set_user_attr("recipe", f"r{number}")
        study.tell(trial, number / 3)


def test_a_study_is_made_once(run: RunDir, url: str | None) -> None:
    study = open_study(run, url, "eine studie")
    assert study.direction.name == "MAXIMIZE"
    fill(study, 2)
    before = journal_path(run).read_bytes() if url is None else b""
    again = open_study(run, url, "eine studie")
    assert [trial.value for trial in again.get_trials()] == [0.0, 1 / 3]
    other = open_study(run, url, "another")
    assert other.get_trials() == []
    fill(other, 1, start=7)
    assert [row.value for row in load_trials(run, url, "eine studie")] == [0.0, 1 / 3]
    assert [row.recipe for row in load_trials(run, url, "another")] == ["r7"]
    if url is None:
        assert journal_path(run).read_bytes().startswith(before)


def test_opening_a_journal_again_writes_nothing(run: RunDir) -> None:
    fill(open_study(run, None, "s"), 2)
    before = files(run.path)
    open_study(run, None, "s")
    assert files(run.path) == before


def test_states_and_values(run: RunDir, url: str | None) -> None:
    import optuna

    study = open_study(run, url, "s")
    study.enqueue_trial({"x": 0.1 + 0.2, "n": 2})
    assert load_trials(run, url, "s") == [], "what is only enqueued is no trial yet"
    first = study.ask()
    assert load_trials(run, url, "s") == [TrialRow(0, "running", None, {}, "")]
    first.suggest_float("x", 0.0, 1.0)
    assert load_trials(run, url, "s") == [TrialRow(0, "running", None, {"x": 0.1 + 0.2}, "")]
    first.suggest_int("n", 0, 3)
    first.set_user_attr("recipe", "0123456789abcdef")
    study.tell(first, 5e-324)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    rows = load_trials(run, url, "s")
    assert rows == [
        TrialRow(0, "complete", 5e-324, {"x": 0.1 + 0.2, "n": 2.0}, "0123456789abcdef"),
        TrialRow(1, "failed", None, {}, ""),
        TrialRow(2, "pruned", None, {}, ""),
    ]
    assert all(type(value) is float for value in rows[0].values.values())


def test_looking_at_nothing_makes_nothing(run: RunDir, url: str | None) -> None:
    before = files(run.path)
    assert load_trials(run, url, "s") == []
    assert files(run.path) == before
    open_study(run, url, "s")
    assert load_trials(run, url, "no such study") == []


def test_reading_never_writes(run: RunDir, url: str | None) -> None:
    study = open_study(run, url, "s")
    fill(study, 3)
    study.ask()
    before = files(run.path)
    reading = url
    if url is not None and url.startswith("postgresql"):
        reading = f"{url}&options=-cdefault_transaction_read_only%3Don"
        with pytest.raises(RunError, match="read-only transaction"):
            open_study(run, reading, "new")
    assert len(load_trials(run, reading, "s")) == 4
    assert files(run.path) == before


def test_reading_unpickles_nothing(run: RunDir, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.search.kit import drive, searcher

    drive(searcher(open_study(run, url, "s"), "cmaes"), 10)

    def refuse(*args: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    assert sum(row.state == "complete" for row in load_trials(run, url, "s")) == 10


def write(run: RunDir, url: str | None) -> None:
    study = open_study(run, url, "s")
    while True:
        fill(study, 1)


def test_reading_while_a_driver_writes(run: RunDir, url: str | None) -> None:
    open_study(run, url, "s")
    process = FORK.Process(target=write, args=(run, url))
    process.start()
    try:
        seen = 0
        deadline = time.monotonic() + 20
        while seen < 8 and time.monotonic() < deadline:
            rows = load_trials(run, url, "s")
            assert [row.number for row in rows] == list(range(len(rows)))
            assert all(row.state == "complete" for row in rows[:-1])
            assert len(rows) >= seen
            seen = len(rows)
        assert process.is_alive()
        assert seen >= 8
    finally:
        process.kill()
        process.join()
    study = open_study(run, url, "s")
    fill(study, 1)
    assert study.get_trials()[-1].value == 0.0


def test_a_relative_path_begins_where_the_run_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers have another working directory, and so may the next start."""
    home, elsewhere = tmp_path / "home", tmp_path / "else"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    run = RunDir.create(Path("runs/x"), name="x", config_text="", identity={}, parents={})
    fill(open_study(run, "sqlite:///s.db", "s"), 1)
    monkeypatch.chdir(elsewhere)
    assert len(load_trials(RunDir.open(run.path), "sqlite:///s.db", "s")) == 1
    assert (home / "s.db").exists()
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> str:
    try:
        url, _ = postgres.new_database()
    except postgres.Unavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("EVOLVE_TEST_PG", postgres.PASSWORD)
    return url


def both(run: RunDir, url: str, match: str) -> list[str]:
    messages = []
    uses: tuple[Any, ...] = (open_study, load_trials)
    for use in uses:
        with pytest.raises(RunError, match=match) as caught:
            use(run, url, "s")
        messages.append(str(caught.value))
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return messages


def test_a_wrong_password_is_not_shown(run: RunDir, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLVE_TEST_PG", "wr0ng/secret")
    for message in both(run, database, "password authentication failed"):
        assert "wr0ng" not in message
        assert "${EVOLVE_TEST_PG}" in message


def test_a_server_that_is_not_there(run: RunDir, tmp_path: Path) -> None:
    pytest.importorskip("psycopg2")
    for message in both(run, f"postgresql://me@/d?host={tmp_path}", "the storage failed"):
        assert "run the same command again" in message


def test_a_server_that_goes_away_in_a_search(run: RunDir, database: str) -> None:
    """The searcher's errors are ours, and the study goes on after them."""
    import psycopg2

    from tests.search.kit import contents, drive, searcher

    search = searcher(open_study(run, database, "s"), "random")
    drive(search, 3)
    connection = psycopg2.connect(
        host=str(postgres.server()), user="evolve", password=postgres.PASSWORD, dbname="postgres"
    )
    connection.autocommit = True
    cursor = connection.cursor()
    name = database.rpartition("/d")[2].partition("?")[0]
    cursor.execute(f"ALTER DATABASE d{name} ALLOW_CONNECTIONS false")
    cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (f"d{name}",))
    with pytest.raises(RunError, match="study s: the storage failed") as caught:
        search.progress()
    assert postgres.PASSWORD not in str(caught.value)
    cursor.execute(f"ALTER DATABASE d{name} ALLOW_CONNECTIONS true")
    connection.close()
    again = open_study(run, database, "s")
    drive(searcher(again, "random"), 9)
    undisturbed = open_study(run, database, "undisturbed")
    drive(searcher(undisturbed, "random"), 9)
    assert contents(again) == contents(undisturbed)


def test_a_file_that_is_no_database(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("dear diary" * 500)
    both(run, f"sqlite:///{tmp_path}/s.db", "not a database")
    assert (tmp_path / "s.db").read_text() == "dear diary" * 500


@pytest.mark.parametrize("name", ["s{SCHEMA_VERSION}.db", "{0}.db", "{.db", "ü %41 #.db"])
def test_odd_names_of_files(run: RunDir, tmp_path: Path, name: str) -> None:
    open_study(run, f"sqlite:///{tmp_path}/{name}", "s").ask()
    assert (tmp_path / name).exists()
    assert len(load_trials(run, f"sqlite:///{tmp_path}/{name}", "s")) == 1


def test_a_folder_that_is_not_there(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        open_study(run, f"sqlite:///{tmp_path}/none/s.db", "s")


def test_a_database_of_another_optuna(run: RunDir, tmp_path: Path) -> None:
    import sqlite3

    url = f"sqlite:///{tmp_path}/s.db"
    open_study(run, url, "s")
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    both(run, url, r"search\.storage: sqlite.*optuna")


def test_psycopg2_is_missing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    for use in (open_study, load_trials):
        with pytest.raises(MissingDependency, match="psycopg2-binary"):
            use(run, "postgresql://me@h/d", "s")


def test_the_journal_cannot_be_written(run: RunDir) -> None:
    (run.path / "study").touch()
    with pytest.raises(RunError, match="journal"):
        open_study(run, None, "s")
