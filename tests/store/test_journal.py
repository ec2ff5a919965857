"""The journal file: Optuna's format, whole records only, and every kind of damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from optuna.storages.journal import JournalFileBackend

from evolve.errors import RunError
from evolve.store.journal import JournalFile, open_journal
from evolve.store.study import journal_path, load_trials, open_study

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

    from evolve.store.rundir import RunDir

FORK = multiprocessing.get_context("fork")


def record(number: int, size: int = 3) -> dict[str, Any]:
    return {"op_code": 8, "worker_id": "w", "trial_id": number, "user_attr": {"ü": "x" * size}}


def records(path: Path) -> list[dict[str, Any]]:
    return list(JournalFile(path).read_logs(0))


def test_optuna_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    ours = tmp_path / "ours.log"
    open_journal(ours).append_logs([record(1), record(2)])
    assert list(JournalFileBackend(str(ours)).read_logs(0)) == [record(1), record(2)]
    JournalFileBackend(str(ours)).append_logs([record(3)])
    assert records(ours) == [record(1), record(2), record(3)]


def test_reading_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal = open_journal(path)
    other = JournalFile(path)
    assert list(journal.read_logs(0)) == []
    for number in range(5):
        other.append_logs([record(number)])
        assert list(journal.read_logs(number)) == [record(number)]
    assert list(journal.read_logs(2)) == [record(2), record(3), record(4)], "and back"
    # Optuna stops in the middle when it refuses a record; it counts that one as read.
    stopped = journal.read_logs(0)
    assert next(stopped) == record(0)
    stopped.close()
    assert next(journal.read_logs(1)) == record(1)


def test_a_record_in_the_making_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    open_journal(path).append_logs([record(0)])
    reader = JournalFile(path, readonly=True)
    whole = json.dumps(record(1)).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        file.write(whole[:20])
        assert list(reader.read_logs(0)) == [record(0)]
        file.write(whole[20:])
        assert list(reader.read_logs(1)) == [record(1)]


def test_a_reader_refuses_to_write(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    open_journal(path)
    with pytest.raises(RunError, match="opened for reading"):
        JournalFile(path, readonly=True).append_logs([record(0)])


@pytest.mark.parametrize(
    "tail",
    [b"{", b'{"op_code":8', b"\0" * 4096, b"{}\n", b"\0\0\n", b"[1]\n", b"\n", b"\xff\xfe\n", b"x" * 200_000],
)
def test_a_last_record_that_is_none_is_cut_and_kept(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "journal.log"
    open_journal(path).append_logs([record(0), record(1)])
    whole = path.read_bytes()
    for number in (1, 2):
        path.write_bytes(whole + tail)
        journal = open_journal(path)
        assert path.read_bytes() == whole
        assert (tmp_path / f"journal.torn-{number}").read_bytes() == tail
        journal.append_logs([record(2)])
        assert records(path) == [record(0), record(1), record(2)]


def test_nothing_but_a_torn_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"op')
    open_journal(path)
    assert path.read_bytes() == b""


def test_a_writer_that_finds_a_torn_record_cuts_it(tmp_path: Path) -> None:
    """Another writer may have died since we opened: the next record must not end up behind a piece of one."""
    path = tmp_path / "journal.log"
    journal = open_journal(path)
    journal.append_logs([record(0)])
    with path.open("ab") as file:
        file.write(b'{"op_code":')
    journal.append_logs([record(1)])
    assert records(path) == [record(0), record(1)]


def writes_until_full(path: Path) -> None:
    journal = JournalFile(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    with pytest.raises(RunError, match="File too large"):
        for number in range(100):
            journal.append_logs([record(number, 650)])


def test_a_full_disk_leaves_no_half_record(tmp_path: Path) -> None:
    """The kernel's own limit on the size of a file: a write that is done in part."""
    path = tmp_path / "journal.log"
    open_journal(path)
    process = FORK.Process(target=writes_until_full, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    data = path.read_bytes()
    assert 9_000 < len(data) < 10_000
    assert data.endswith(b"\n")
    JournalFile(path).append_logs([record(99)])
    found = records(path)
    assert found == [record(number, 650) for number in range(len(found) - 1)] + [record(99)]
    assert not list(tmp_path.glob("*torn*"))


def appends(path: Path, worker: int) -> None:
    journal = JournalFile(path)
    for number in range(10**9):
        journal.append_logs([record(worker * 10**6 + number, 5_000)])


def test_killed_writers_side_by_side(tmp_path: Path) -> None:
    """Whatever the instant: every record but a torn last one is whole, and no writer waits for a dead one."""
    path = tmp_path / "journal.log"
    open_journal(path)
    for start in range(6):
        processes = [FORK.Process(target=appends, args=(path, 2 * start + worker)) for worker in (0, 1)]
        for process in processes:
            process.start()
        time.sleep(0.05)
        for process in processes:
            process.kill()
            process.join()
        began = time.monotonic()
        open_journal(path)
        assert time.monotonic() - began < 5
    found = [record["trial_id"] for record in records(path)]
    for worker in range(12):
        own = [number for number in found if number // 10**6 == worker]
        assert own == sorted(own)
    assert len(found) > 20


@pytest.fixture
def searched(run: RunDir) -> bytes:
    study = open_study(run, None, "s")
    for value in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr("recipe", f"r{value}")
        study.tell(trial, value)
    return journal_path(run).read_bytes()


def states(study: optuna.Study) -> list[Any]:
    return [(t.number, t.state, t.value, t.params, t.user_attrs) for t in study.get_trials()]


def test_a_journal_torn_at_every_byte_of_each_kind_of_record(
    run: RunDir, searched: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thousand cuts: waiting for the disk would take most of the time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    lines = searched.splitlines(keepends=True)
    path = journal_path(run)
    kinds = {json.loads(line)["op_code"]: number for number, line in enumerate(lines)}
    assert set(kinds) == {0, 4, 5, 6, 8}
    for kind, number in kinds.items():
        before = b"".join(lines[:number])
        path.write_bytes(before)
        expected = None if kind == 0 else states(open_study(run, None, "s"))
        for length in range(1, len(lines[number])):
            torn = lines[number][:length]
            path.write_bytes(before + torn)
            rows = load_trials(run, None, "s")
            assert path.read_bytes() == before + torn, "a reader writes nothing"
            study = open_study(run, None, "s")
            kept = path.parent / "journal.torn-1"
            assert kept.read_bytes() == torn
            kept.unlink()
            if expected is None:
                assert study.get_trials() == []
                continue
            assert path.read_bytes() == before
            assert states(study) == expected
            assert len(rows) == len(expected)
            if length % 40 == 1:
                study.tell(study.ask(), 9.0)
                assert states(open_study(run, None, "s"))[-1][2] == 9.0


def test_damage_in_the_middle_is_an_error_and_nothing_is_deleted(run: RunDir, searched: bytes) -> None:
    lines = searched.splitlines(keepends=True)
    path = journal_path(run)
    # What has lost its newline runs into the next record; were that the last one, it would be a torn end.
    for number in range(len(lines) - 2):
        for damaged in (b"\0" * len(lines[number]), lines[number][:7], lines[number][:-2] + b"\n", b"\n"):
            path.write_bytes(b"".join([*lines[:number], damaged, *lines[number + 1 :]]))
            before = path.read_bytes()
            for use in (open_study, load_trials):
                with pytest.raises(RunError, match=r"line \d+ is damaged.*run the same command again"):
                    use(run, None, "s")
            assert path.read_bytes() == before
            assert [file.name for file in path.parent.iterdir()] == ["journal.log"]


def test_whole_records_that_make_no_sense(run: RunDir, searched: bytes) -> None:
    """A lost line in the middle: what is behind it speaks of things that are not there."""
    lines = searched.splitlines(keepends=True)
    path = journal_path(run)
    for broken in (b'{"op_code":77}\n', b'{"op_code":4}\n', b'{"op_code":5,"trial_id":0}\n'):
        path.write_bytes(b"".join([*lines[:2], broken, *lines[2:]]))
        before = path.read_bytes()
        for use in (open_study, load_trials):
            with pytest.raises(RunError, match=r"journal\.log: line 3 does not follow"):
                use(run, None, "s")
        assert path.read_bytes() == before
