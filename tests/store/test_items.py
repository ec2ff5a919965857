"""The columnar file of items: read back exactly, by others too, after a cut at any byte."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evolve.errors import RunError
from evolve.store.items import NAME, ItemTable
from evolve.store.rundir import FORMAT, RunDir
from evolve.types import Job, Recipe, Scored, TaskScore, outcome_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "0123456789abcdef"
ITEMS = {f"{i:016x}": float(i % 3 == 0) for i in range(300)}


def recipe(number: int) -> Recipe:
    return Recipe.make({"base": "sha256:aa"}, [{"merge": {"weight": number}}])


def scored(items: Mapping[str, float]) -> Scored:
    tasks = {
        "one": TaskScore("acc", 0.5, 0.1, True, items, 0.25),
        "two": TaskScore("ppl", 1.5, 0.1, False, {key: value + 1 / 3 for key, value in items.items()}),
    }
    return Scored(0.5, 0.1, tasks)


finite = st.floats(allow_nan=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=5), finite, max_size=4), min_size=1, max_size=4))
def test_what_is_written_is_read_bit_by_bit(tmp_path: Path, jobs: list[dict[str, float]]) -> None:
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "new" / NAME
    writer, early = ItemTable(path), ItemTable(path)
    for number, items in enumerate(jobs):
        writer.append(f"job{number}", {"t": items, "ü": dict(reversed(items.items()))})
        assert early.get(f"job{number}", "t") == items
    for table in (writer, early, ItemTable(path)):
        for number, items in enumerate(jobs):
            for task in ("t", "ü"):
                found = table.get(f"job{number}", task)
                assert found is not None
                assert {key: value.hex() for key, value in found.items()} == {
                    key: value.hex() for key, value in items.items()
                }
        assert table.get("job9", "t") is None and table.get("job0", "x") is None


def test_anybody_reads_it_and_it_is_small(tmp_path: Path) -> None:
    import pyarrow as pa

    table = ItemTable(tmp_path / NAME)
    for number in range(100):
        table.append(f"job{number}", {"one": {key: float((hash(key) + number) % 2) for key in ITEMS}})
    rows = pa.ipc.open_stream(tmp_path / NAME).read_all().to_pylist()
    assert [row["job"] for row in rows] == [f"job{number}" for number in range(100)]
    assert [row["keys"] is not None for row in rows] == [True, *[False] * 99]
    assert rows[7]["values"] == [float((hash(key) + 7) % 2) for key in ITEMS]
    plain = len(json.dumps(ITEMS)) * 100
    assert (tmp_path / NAME).stat().st_size < plain / 6


def test_a_file_cut_at_any_byte_goes_on(tmp_path: Path) -> None:
    path = tmp_path / NAME
    table = ItemTable(path)
    small = dict(list(ITEMS.items())[:5])
    sizes = []
    for number in range(3):
        table.append(f"job{number}", {"one": small})
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 23), *(size + step for size in sizes for step in (-1, 0, 1))]:
        path.write_bytes(whole[:cut])
        again = ItemTable(path)
        again.append("last", {"one": small})
        reader = ItemTable(path)
        assert reader.get("last", "one") == small, cut
        for number, size in enumerate(sizes):
            assert (reader.get(f"job{number}", "one") == small) == (size <= cut), cut


def test_a_reader_waits_for_the_rest_of_a_batch(tmp_path: Path) -> None:
    path = tmp_path / NAME
    ItemTable(path).append("job0", {"one": ITEMS})
    before = path.stat().st_size
    ItemTable(path).append("job1", {"one": ITEMS})
    whole = path.read_bytes()
    path.write_bytes(whole[: before + 40])
    reader = ItemTable(path)
    assert reader.get("job0", "one") == ITEMS and reader.get("job1", "one") is None
    with path.open("ab") as file:
        file.write(whole[before + 40 :])
    assert reader.get("job1", "one") == ITEMS


def test_a_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    table = ItemTable(path)
    table.append("job0", {"one": ITEMS})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left"):
            table.append("job1", {"one": ITEMS})
    assert path.read_bytes() == before
    table.append("job1", {"one": ITEMS})
    assert ItemTable(path).get("job1", "one") == ITEMS


def _fill(path: str) -> None:
    run = RunDir.open(Path(path))
    for number in range(10_000):
        if run.outcome(Job(recipe(number)), KEY) is None:
            run.record(Job(recipe(number)), scored(ITEMS), score_key=KEY, attempts=1)


def test_kills_lose_and_repeat_nothing(run: RunDir) -> None:
    draw = random.Random(3)
    known: dict[str, bytes] = {}
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=_fill, args=(str(run.path),))
        process.start()
        time.sleep(draw.uniform(0.05, 0.4))
        process.kill()
        process.join()
        found = {file.name: file.read_bytes() for file in (run.path / "candidates" / KEY).glob("*.json")}
        assert all(found[name] == text for name, text in known.items())
        known = found
    records = RunDir.open(run.path).records()
    assert len(records) == len(known) > 12
    for record in records:
        assert record.outcome == scored(ITEMS)


def test_records_without_their_items_count_as_not_scored(run: RunDir) -> None:
    run.record(Job(recipe(0)), scored(ITEMS), score_key=KEY, attempts=1)
    (run.path / "candidates" / KEY / NAME).unlink()
    again = RunDir.open(run.path)
    assert again.records() == []
    assert again.outcome(Job(recipe(0)), KEY) is None
    again.record(Job(recipe(0)), scored(ITEMS), score_key=KEY, attempts=1)
    assert again.outcome(Job(recipe(0)), KEY) == scored(ITEMS)


def test_runs_of_format_1_are_read_and_gone_on_with(run: RunDir) -> None:
    """A record as evolve wrote it before items had a file of their own."""
    old: dict[str, Any] = {
        "recipe": json.loads(recipe(0).text),
        "hash": recipe(0).hash,
        "split": "search",
        "score_key": KEY,
        "outcome": outcome_to_json(scored(ITEMS)),
        "attempts": 1,
        "at": "2026-11-23T00:00:00+00:00",
    }
    folder = run.path / "candidates" / KEY
    folder.mkdir(parents=True)
    (folder / f"{Job(recipe(0)).key}.json").write_text(json.dumps(old))
    meta = {**run.meta, "format": 1}
    (run.path / "run.json").write_text(json.dumps(meta))
    opened = RunDir.open(run.path)
    assert opened.outcome(Job(recipe(0)), KEY) == scored(ITEMS)
    assert json.loads((run.path / "run.json").read_text())["format"] == 1, "readers change nothing"
    with opened.lock("test"):
        opened.record(Job(recipe(1)), scored(ITEMS), score_key=KEY, attempts=1)
    assert RunDir.open(run.path).meta["format"] == FORMAT
    assert [record.outcome for record in RunDir.open(run.path).records()] == [scored(ITEMS)] * 2


def test_a_task_without_items_and_a_nan_error(run: RunDir) -> None:
    outcome = Scored(0.5, math.nan, {"one": TaskScore("acc", 0.5, math.nan, True)})
    run.record(Job(recipe(0)), outcome, score_key=KEY, attempts=1)
    found = RunDir.open(run.path).outcome(Job(recipe(0)), KEY)
    assert isinstance(found, Scored) and found.tasks["one"].items == {}
