from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import RunError
from evolve.store.rundir import FORMAT, RunDir
from evolve.types import Failed, Job, Parent, Recipe, Scored, TaskScore

if TYPE_CHECKING:
    from evolve.types import Outcome

FORK = multiprocessing.get_context("fork")

PARENT = Parent("mäth", "models/mäth", "/somewhere/models/mäth", None, "sha256:aa")


def recipe(weight: float) -> Recipe:
    return Recipe.make({"base": "sha256:aa"}, [{"merge": {"weight": weight, "name": "größe"}}])


SCORED = Scored(
    value=0.1 + 0.2,
    stderr=math.nan,
    tasks={"tâche": TaskScore("acc", 1 / 3, math.nan, True, {"a1": 1.0, "b2": 0.0})},
    seconds={"build": 0.25, "total": 1e-9},
    log="Zeile\nmit Bytes \udcff\n",
)
FAILED = Failed("oom", "no room \udc80", retryable=True, seconds={"total": 2.0}, log="Traceback ...\n")


def make(path: Path, **changes: Any) -> RunDir:
    fields: dict[str, Any] = {
        "name": path.name,
        "config_text": "a: ü\n",
        "identity": {"search": {"trials": 1}},
        "parents": {"mäth": PARENT},
    }
    return RunDir.create(path, **{**fields, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make(Path("läufe mit raum/x"))
    monkeypatch.chdir("/")
    opened = RunDir.open(tmp_path / "läufe mit raum" / "x")
    for run in (made, opened, pickle.loads(pickle.dumps(opened))):
        assert run.path == tmp_path / "läufe mit raum" / "x"
        assert run.meta["format"] == FORMAT
        assert run.meta["name"] == "x"
        assert run.meta["created_in"] == str(tmp_path)
        assert run.config_text() == "a: ü\n"
        assert run.identity() == {"search": {"trials": 1}}
        assert run.parents() == {"mäth": PARENT}


def test_a_run_is_not_made_twice(run: RunDir) -> None:
    before = files(run.path)
    with pytest.raises(RunError, match="a run here already"):
        make(run.path)
    assert files(run.path) == before


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "study", "state.json"])
def test_somebody_elses_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RunError, match="not a run's folder") as caught:
        make(tmp_path)
    assert repr(name) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(RunError, match=str(tmp_path)):
        make(tmp_path / "x")


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(RunError, match="/proc/nothing"):
        make(Path("/proc/nothing/x"))


def test_a_killed_creation_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each of the four files, and in each of them."""
    original = Path.replace
    for number in range(4):
        path = tmp_path / f"run {number}"

        def child(path: Path = path, number: int = number) -> None:
            left = number

            def deadly(self: Path, target: Path) -> Path:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), 9)
                left -= 1
                return original(self, target)

            monkeypatch.setattr(Path, "replace", deadly)
            make(path)

        process = FORK.Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == -9
        assert any(file.suffix == ".tmp" for file in path.iterdir())
        with pytest.raises(RunError, match="no run here"):
            RunDir.open(path)
        run = make(path)
        with run.lock("sweep"):
            assert sorted(entry.name for entry in path.iterdir()) == [
                "config.yaml",
                "identity.json",
                "lock",
                "parents.json",
                "run.json",
            ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no run here"),
        ("", "damaged"),
        ('{"format": 1, "na', "damaged"),
        ("[]", "damaged: not a JSON object"),
        ("{}", "damaged: it has no format"),
        ('{"format": 1}', "no name"),
        (b"\xff\xfe", "damaged: not UTF-8"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_a_damaged_run_json(run: RunDir, text: str | bytes | None, message: str) -> None:
    file = run.path / "run.json"
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = files(run.path)
    with pytest.raises(RunError, match=message):
        RunDir.open(run.path)
    assert files(run.path) == before


def test_a_newer_format(run: RunDir) -> None:
    meta = {**run.meta, "format": FORMAT + 1, "evolve": "9.1.0"}
    (run.path / "run.json").write_text(json.dumps(meta))
    with pytest.raises(RunError, match=r"written by evolve 9\.1\.0 in format 3.*Install evolve 9\.1\.0"):
        RunDir.open(run.path)


@pytest.mark.parametrize("name", ["config.yaml", "identity.json", "parents.json"])
def test_a_missing_or_damaged_file(run: RunDir, name: str) -> None:
    read = {"config.yaml": run.config_text, "identity.json": run.identity, "parents.json": run.parents}[name]
    (run.path / name).write_bytes(b'{"a": {"b": \xff')
    with pytest.raises(RunError, match=name):
        read()
    (run.path / name).unlink()
    with pytest.raises(RunError, match=name):
        read()


def test_parents_with_unknown_fields(run: RunDir) -> None:
    (run.path / "parents.json").write_text('{"a": {"colour": "blue"}}')
    with pytest.raises(RunError, match=r"parents\.json: damaged"):
        run.parents()


def test_replacing_the_config_keeps_every_old_one(run: RunDir) -> None:
    old = files(run.path)
    run.replace_config("b: 2\n", {"b": 2}, {"mäth": PARENT})
    run.replace_config("c: 3\n", {"c": 3}, {})
    assert (run.config_text(), run.identity(), run.parents()) == ("c: 3\n", {"c": 3}, {})
    now = files(run.path)
    assert now["config.1.yaml"] == old["config.yaml"]
    assert now["identity.1.json"] == old["identity.json"]
    assert now["parents.1.json"] == old["parents.json"]
    assert now["config.2.yaml"] == b"b: 2\n"
    assert json.loads(now["identity.2.json"]) == {"b": 2}


@pytest.mark.parametrize("split", ["search", "holdout"])
@pytest.mark.parametrize("outcome", [SCORED, FAILED], ids=["scored", "failed"])
def test_an_outcome_comes_back(run: RunDir, split: Any, outcome: Outcome) -> None:
    job = Job(recipe(0.1), split)
    assert run.outcome(job, "key") is None
    run.record(job, outcome, score_key="key", attempts=2)
    found = RunDir.open(run.path).outcome(job, "key")
    assert type(found) is type(outcome)
    if isinstance(outcome, Scored):
        assert isinstance(found, Scored)
        assert found.value == outcome.value
        assert math.isnan(found.stderr)
        task = found.tasks["tâche"]
        assert (task.metric, task.value, task.higher_is_better) == ("acc", 1 / 3, True)
        assert task.items == {"a1": 1.0, "b2": 0.0}
    else:
        assert isinstance(found, Failed)
        assert (found.kind, found.message, found.retryable) == ("oom", "no room \udc80", True)
    assert found.seconds == outcome.seconds
    log = (run.path / "logs" / f"{job.key}.log").read_text()
    assert log == outcome.log.replace("\udcff", "\\udcff")

    assert run.outcome(job, "other key") is None
    assert run.outcome(Job(job.recipe, "holdout" if split == "search" else "search"), "key") is None
    assert run.outcome(Job(recipe(0.2), split), "key") is None
    [record] = run.records()
    assert (record.job, record.score_key, record.attempts) == (job, "key", 2)
    assert record.recipe.text == job.recipe.text


def test_a_second_outcome_replaces_the_first(run: RunDir) -> None:
    job = Job(recipe(0.5))
    run.record(job, FAILED, score_key="key", attempts=1)
    run.record(job, Scored(1.0, 0.1, {}), score_key="key", attempts=2)
    assert isinstance(run.outcome(job, "key"), Scored)
    assert len(run.records()) == 1


def test_records_are_oldest_first(run: RunDir) -> None:
    weights = [0.3, 0.1, 0.2]
    for weight in weights:
        run.record(Job(recipe(weight)), Scored(weight, 0.0, {}), score_key=f"k{weight}", attempts=1)
    assert [record.recipe for record in run.records()] == [recipe(weight) for weight in weights]


def test_a_value_that_is_not_finite_is_kept(run: RunDir) -> None:
    job = Job(recipe(0.5))
    run.record(job, Scored(math.inf, 0.0, {}), score_key="key", attempts=1)
    found = run.outcome(job, "key")
    assert isinstance(found, Scored)
    assert found.value == math.inf


@pytest.mark.parametrize("key", ["", ".", "../x", "a/b", ".hidden", "a\0b"])
def test_score_keys_that_are_no_folder(run: RunDir, key: str) -> None:
    before = files(run.path)
    with pytest.raises(ValueError, match="score key"):
        run.record(Job(recipe(0.5)), FAILED, score_key=key, attempts=1)
    assert files(run.path) == before


def test_a_record_cut_anywhere_counts_as_absent(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(recipe(0.5))
    run.record(job, FAILED, score_key="key", attempts=1)
    file = run.path / "candidates" / "key" / f"{job.key}.json"
    whole = file.read_bytes()
    # The last byte is the newline, without which the record is still whole.
    for length in range(len(whole) - 1):
        file.write_bytes(whole[:length])
        caplog.clear()
        assert run.records() == []
        assert file.exists(), "a reader moves nothing"
        assert run.outcome(job, "key") is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
        assert not file.exists()
    kept = {path.read_bytes() for path in file.parent.glob("*.damaged*")}
    assert kept == {whole[:length] for length in range(len(whole) - 1)}, "nothing is lost"
    assert run.records() == []


def test_a_data_file_that_has_moved_is_the_same_recipe(run: RunDir) -> None:
    def job(path: str) -> Job:
        file = {"path": path, "content": "sha256:" + "0" * 64}
        return Job(Recipe.make({"base": "sha256:aa"}, [{"cpt": {"dataset": file}}]))

    run.record(job("data/x.jsonl"), SCORED, score_key="key", attempts=1)
    assert isinstance(run.outcome(job("elsewhere/y.jsonl"), "key"), Scored)
    assert not list((run.path / "candidates" / "key").glob("*.damaged"))


@pytest.mark.parametrize("change", ["recipe", "job", "outcome", "state", "list"])
def test_a_record_that_does_not_fit(run: RunDir, change: str) -> None:
    job, other = Job(recipe(0.5)), Job(recipe(0.6))
    for one in (job, other):
        run.record(one, FAILED, score_key="key", attempts=1)
    file = run.path / "candidates" / "key" / f"{job.key}.json"
    document: Any = json.loads(file.read_text())
    if change == "recipe":
        document["recipe"]["pipeline"][0]["merge"]["weight"] = 0.7
    elif change == "job":
        document = json.loads((file.parent / f"{other.key}.json").read_text())
    elif change == "outcome":
        del document["outcome"]["kind"]
    elif change == "state":
        document["outcome"] = []
    else:
        document = [document]
    file.write_text(json.dumps(document))
    assert run.outcome(job, "key") is None
    assert run.outcome(other, "key") is not None
    assert (file.parent / f"{file.name}.damaged").exists()


def test_a_full_disk_loses_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Job(recipe(0.1)), Job(recipe(0.2))
    run.record(first, SCORED, score_key="key", attempts=1)
    before = files(run.path)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"No space left.*nothing that was finished is lost"):
        run.record(second, FAILED, score_key="key", attempts=1)
    monkeypatch.undo()
    after = files(run.path)
    del after[f"logs/{second.key}.log"]
    assert after == before
    run.record(second, FAILED, score_key="key", attempts=1)
    assert run.outcome(second, "key") is not None


def test_parts_are_kept_apart_from_whole_candidates(tmp_path: Path) -> None:
    run = make(tmp_path / "x")
    job = Job(recipe(0.5), items=(("tâche", ("a1", "b2")), ("other", ("c3",))))
    other = Job(recipe(0.5), items=(("tâche", ("b2", "a1")), ("other", ("c3",))))
    assert len({job.key, other.key, Job(recipe(0.5)).key}) == 3
    assert run.outcome(job, "key") is None
    run.record(job, SCORED, score_key="key", attempts=1)
    assert run.outcome(other, "key") is None
    assert run.outcome(Job(recipe(0.5)), "key") is None
    assert run.records() == []
    [part] = run.parts()
    assert part.job == job
    assert run.outcome(job, "key") == part.outcome
    run.record(Job(recipe(0.5)), SCORED, score_key="key", attempts=1)
    assert [record.job for record in run.records()] == [Job(recipe(0.5))]
    folder = run.path / "candidates" / "key" / "parts"
    (folder / ".killed.json.1.2.tmp").touch()
    left = [*folder.iterdir()]
    with run.lock("next"):
        assert len(run.parts()) == 1
    assert len(left) >= len([*folder.iterdir()])
