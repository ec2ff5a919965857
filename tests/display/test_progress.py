import io
import logging
import time
from dataclasses import replace

import pytest
from rich.console import Console

from evolve.display import plain
from evolve.display.live import Rich
from evolve.display.plain import Plain
from evolve.display.progress import Progress, Reader, progress_of
from evolve.display.watch import watch

STATE = {
    "phase": "search",
    "generation": 3,
    "generations": 12,
    "complete": 24,
    "trials": 100,
    "failed": {"timeout": 1, "oom": 2},
    "running": 4,
    "best": 0.71234,
    "best_number": 17,
    "best_parent": 0.65,
    "average": 0.54,
    "evaluators": 2,
    "started": 1000.0,
    "updated": 1050.0,
    "reason": None,
}


def test_a_line_says_everything():
    progress = progress_of("small", STATE, 30, per_minute=38.0, now=1200.0)
    assert progress.left == pytest.approx(120.0), "76 candidates at 38 a minute"
    assert progress.line() == (
        "3 min 20 s  searching  generation 3/12  candidates 24/100  running 4  "
        "best so far 0.7123 (trial 17)  "
        "best parent 0.6500  plain average 0.5400  per minute 38.0  time left 2 min 00 s  evaluators 2  "
        "failed oom 2, timeout 1"
    )


def test_an_empty_or_partial_state_is_fine():
    assert progress_of("x", {}, 0, per_minute=None, now=1.0).line() == (
        "checking the parents and tasks  candidates 0"
    )
    assert "phase" in dict(progress_of("x", {"phase": "something new"}, 0, per_minute=None, now=1.0).facts())


def test_a_finished_run_stops_its_clock():
    progress = progress_of("x", {**STATE, "phase": "done"}, 0, per_minute=60.0, now=99999.0)
    assert progress.elapsed == 50.0
    assert progress.left is None


def test_speed_counts_the_records_of_this_watch_only(run, monkeypatch):
    run.write_state(phase="search", complete=4, trials=24)
    reader = Reader(run)
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    counts = [10, 10, 14]
    monkeypatch.setattr(reader, "_count_records", lambda key: counts.pop(0))
    assert reader.look().per_minute is None
    clock[0] += 60
    assert reader.look().per_minute is None, "nothing has finished yet"
    clock[0] += 60
    progress = reader.look()
    assert progress.per_minute == pytest.approx(2.0)
    assert progress.left == pytest.approx(600.0)


def test_the_reader_counts_records_and_writes_nothing(run):
    before = sorted((file, file.stat().st_mtime_ns) for file in run.path.rglob("*"))
    progress = Reader(run).look()
    assert progress.evaluated == len(list((run.path / "candidates").glob("*/*.json"))) > 10
    assert sorted((file, file.stat().st_mtime_ns) for file in run.path.rglob("*")) == before


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_plain_writes_a_line_a_change_and_no_flood(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(plain.time, "monotonic", lambda: clock[0])
    painter, progress = Plain(), Progress("x", "search", generation=1, best=0.5, evaluated=3)
    painter.draw(progress)
    assert len(lines_of(capsys)) == 1
    for _ in range(100):
        clock[0] += 0.5
        painter.draw(progress)
    assert lines_of(capsys) == [], "nothing has changed"
    better = replace(progress, best=0.6)
    painter.draw(better)
    assert len(lines_of(capsys)) == 1
    clock[0] += 1
    painter.draw(replace(better, best=0.7))
    assert lines_of(capsys) == [], "a second ago there was a line"
    painter.draw(replace(better, phase="holdout"))
    assert len(lines_of(capsys)) == 1, "another phase comes at once"
    clock[0] += 1000
    painter.draw(replace(better, phase="holdout", evaluated=4))
    assert len(lines_of(capsys)) == 1, "a sign of life"
    painter.close(replace(better, phase="holdout", evaluated=4))
    assert lines_of(capsys) == []
    painter.close(replace(better, phase="done"))
    assert len(lines_of(capsys)) == 1


def test_rich_draws_in_place():
    stream = io.StringIO()
    painter = Rich(Console(file=stream, force_terminal=True, width=100, markup=False, highlight=False))
    progress = progress_of("[red]small[/]", STATE, 30, per_minute=38.0, now=1200.0)
    painter.draw(progress)
    painter.close(progress)
    text = stream.getvalue()
    for part in (
        "[red]small[/]",
        "searching",
        "3/12",
        "24/100",
        "0.7123 (trial 17)",
        "0.6500",
        "38.0",
        "2 min 00 s",
    ):
        assert part in text
    assert "\x1b[" in text


def wait_for(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_watch_follows_the_run(run, capsys):
    seen: list[str] = []

    def said(word: str) -> bool:
        seen.append(capsys.readouterr().err)
        return word in "".join(seen)

    run.write_state(phase="baselines")
    with watch(run, "plain", every=0.01):
        wait_for(lambda: said("scoring the parents"))
        run.write_state(phase="holdout")
        wait_for(lambda: said("scoring the holdout"))
        run.write_state(phase="done")
    assert said("done")
    assert "".join(seen).count("done") == 1


def test_no_display(run, capsys):
    with watch(run, "none", every=0.01):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_broken_display_does_not_break_the_run(run, caplog, monkeypatch):
    def broken(self):
        raise RuntimeError("no terminal")

    monkeypatch.setattr(Reader, "look", broken)
    with caplog.at_level(logging.WARNING), watch(run, "plain", every=0.01):
        wait_for(lambda: "no terminal" in caplog.text)
        time.sleep(0.1)
    assert caplog.text.count("the run goes on") == 1, "said once, not at every look"


def test_the_run_s_own_error_comes_through(run):
    with pytest.raises(ZeroDivisionError), watch(run, "plain", every=0.01):
        raise ZeroDivisionError


def test_a_state_that_is_gone_or_damaged_is_survived(run, capsys):
    (run.path / "state.json").write_text("{")
    with watch(run, "plain", every=0.01):
        wait_for(lambda: "checking" in capsys.readouterr().err)
