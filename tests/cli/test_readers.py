import json
import os
import socket

import pytest

from evolve.store.rundir import RunDir
from tests.cli.kit import call, read_csv, read_json
from tests.report import switched
from tests.report.synthetic import KEY, make_run
from tests.small import make_search


def test_trials_as_json(made):
    _, runs = made
    rows = read_json("trials", "small", "--runs", runs)
    assert [row["number"] for row in rows] == list(range(len(rows)))
    states = [row["state"] for row in rows]
    assert states.count("complete") == 9
    assert set(states) == {"complete", "failed"}
    for row in rows:
        assert {"number", "state", "value", "metrics", "params", "recipe", "seconds"} <= row.keys()
        assert len(row["recipe"]) == 16
        assert row["seconds"] == 1.0
        assert set(row["params"]) == {
            "merge.one.weight",
            "merge.two.weight.0",
            "merge.two.weight.1",
            "merge.two.density",
        }
        assert row["params"]["merge.two.density"] in (0.3, 0.6, 1.0), "the value, not its index"
        if row["state"] == "complete":
            assert row["metrics"] == {"tiny_choice/acc": row["value"]}
            assert row["failure"] is None
        else:
            assert row["value"] is None
            assert row["metrics"] is None
            assert row["failure"] == {"kind": "timeout", "message": "slower than <1> s & more"}


def test_trials_values_are_those_on_disk(made):
    _, runs = made
    rows = read_json("trials", "small", "--runs", runs)
    for row in rows:
        record = json.loads(
            (runs / "small" / "candidates" / KEY / f"{row['recipe']}-search.json").read_text()
        )
        assert record["outcome"].get("value") == row["value"]


def test_trials_as_csv_and_table(made):
    _, runs = made
    rows = read_csv("trials", "small", "--runs", runs)
    wanted = read_json("trials", "small", "--runs", runs)
    assert [row["number"] for row in rows] == [str(row["number"]) for row in wanted]
    assert [row["value"] for row in rows] == [
        "" if row["value"] is None else str(row["value"]) for row in wanted
    ]
    assert "metrics" not in rows[0], "metrics.* columns stand in its place"
    assert rows[0]["params.merge.one.weight"] == "0.75"
    table = call("trials", "small", "--runs", runs).stdout
    assert "failed: timeout" in table
    assert f"{wanted[0]['value']:.4f} ± " in table


def test_a_running_trial_has_null_where_nothing_is_known(tmp_path):
    config = make_search(tmp_path, name="half")
    run = make_run(config, tmp_path / "runs", steps=1)
    from evolve.store.study import open_study

    study = open_study(run, None, "study")
    study.ask()
    rows = read_json("trials", "half", "--runs", tmp_path / "runs")
    assert rows[-1] | {"params": None} == {
        "number": 1,
        "state": "running",
        "value": None,
        "stderr": None,
        "metrics": None,
        "params": None,
        "recipe": None,
        "seconds": None,
        "failure": None,
    }
    assert call("trials", "half", "--runs", tmp_path / "runs").exit_code == 0


def test_a_run_without_trials(tmp_path):
    run = RunDir.create(
        tmp_path / "runs" / "new",
        name="new",
        config_text=make_search(tmp_path, name="new").read_text(),
        identity={},
        parents={},
    )
    assert run.state() == {}


def test_readers_of_a_run_that_has_only_begun(tmp_path):
    config = make_search(tmp_path, name="begun")
    make_run(config, tmp_path / "runs", steps=0)
    where = ("--runs", tmp_path / "runs")
    assert read_json("trials", "begun", *where) == []
    assert read_csv("trials", "begun", *where) == []
    assert read_json("status", "begun", *where)["best"] is None
    assert "nothing to export" in call("export", "begun", *where, code=2).stderr
    assert "no trials yet" in call("show", "begun", 0, *where, code=2).stderr
    call("best", "begun", *where)
    call("status", "begun", *where)


def test_best_ranks_and_stands_beside_the_baselines(made):
    _, runs = made
    rows = read_json("best", "small", "-k", 3, "--runs", runs)
    assert [row["role"] for row in rows] == ["candidate"] * 3 + ["parent"] * 3 + ["average"]
    values = [row["search"]["value"] for row in rows[:3]]
    trials = read_json("trials", "small", "--runs", runs)
    assert values == sorted((trial["value"] for trial in trials if trial["value"]), reverse=True)[:3]
    assert [row["name"] for row in rows[3:6]] == ["two", "one", "base"], "the best parent first"
    for row in rows[3:]:
        assert (
            row["gaps"]["holdout"]["low"] <= row["gaps"]["holdout"]["value"] <= row["gaps"]["holdout"]["high"]
        )
        assert row["gaps"]["search"]["value"] == pytest.approx(values[0] - row["search"]["value"])
    assert rows[1]["holdout"]["state"] == "complete", "the best five are scored on the holdout"
    assert len(read_csv("best", "small", "-k", 3, "--runs", runs)) == 7


def test_status_as_json(made):
    _, runs = made
    found = read_json("status", "small", "--runs", runs)
    assert found["name"] == "small"
    assert found["working"] is False
    assert found["phase"] == "export"
    assert found["states"] == {"complete": 9, "failed": 2}
    assert found["failed"] == {"timeout": 2}
    values = [trial["value"] for trial in read_json("trials", "small", "--runs", runs)]
    assert found["best"]["search"]["value"] == max(value for value in values if value is not None)
    assert found["average"]["search"]["value"] == 0.45
    assert found["parents"][0]["search"]["value"] == 0.4


def test_status_names_who_works_on_the_run(run, runs):
    with run.lock("evolve run here"):
        found = read_json("status", "small", "--runs", runs)
        assert found["working"] is True
        assert found["holder"]["pid"] == os.getpid()
        assert f"pid {os.getpid()}" in call("status", "small", "--runs", runs).stdout
    (run.path / "lock").write_text(
        json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "command": "x"})
    )
    assert read_json("status", "small", "--runs", runs)["working"] is False, "it died without letting go"
    (run.path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "command": "x"}))
    assert read_json("status", "small", "--runs", runs)["working"] is True, "another host cannot be asked"


def test_status_watch_ends_with_the_run(run, runs):
    run.write_state(phase="done")
    assert "done" in call("status", "small", "--runs", runs, "--watch").stderr


def test_show(made):
    _, runs = made
    trials = read_json("trials", "small", "--runs", runs)
    good = next(trial for trial in trials if trial["state"] == "complete")
    found = read_json("show", "small", good["number"], "--runs", runs)
    assert found["tasks"]["tiny_choice"]["value"] == good["value"]
    assert found["document"]["pipeline"][0]["merge"]["merge_method"] == "dare_ties"
    assert found["training"] == found["layers"] == []
    assert (runs / "small" / "logs" / f"{good['recipe']}-search.log").samefile(found["log"])
    bad = next(trial for trial in trials if trial["state"] == "failed")
    assert "slower than <1> s & more" in call("show", "small", bad["number"], "--runs", runs).stdout
    assert "0 to 10" in call("show", "small", 99, "--runs", runs, code=2).stderr


def test_show_says_how_a_training_went(tmp_path):
    run = switched.make(tmp_path)
    trials = read_json("trials", "small", "--runs", run.path.parent)
    number = next(trial["number"] for trial in trials if trial["params"]["soup.enabled"])
    found = read_json("show", "small", number, "--runs", run.path.parent)
    assert found["training"][0]["rows"] == [[10, 2.0, 0.5], [20, 1.5, 0.25]]
    assert "loss 2 to 1.5 nats a token" in call("show", "small", number, "--runs", run.path.parent).stdout


def test_a_run_is_found_by_name_or_by_path(made, monkeypatch):
    _, runs = made
    by_name = read_json("trials", "small", "--runs", runs)
    assert read_json("trials", runs / "small") == by_name
    monkeypatch.chdir(runs / "small")
    assert read_json("trials", ".") == by_name
    assert "did you mean 'small'" in call("trials", "smal", "--runs", runs, code=2).stderr
    assert "holds no runs" in call("trials", "x", "--runs", runs / "nothing", code=2).stderr


def test_a_newer_format_is_refused(run, runs):
    meta = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**meta, "format": 99}))
    assert "format 99" in call("trials", "small", "--runs", runs, code=2).stderr
    assert "unreadable" in call("ls", "runs", "--runs", runs).stdout


def test_ls_runs(made):
    _, runs = made
    (row,) = read_json("ls", "runs", "--runs", runs)
    values = [trial["value"] for trial in read_json("trials", "small", "--runs", runs)]
    best = max(value for value in values if value is not None)
    assert (row["run"], row["complete"], row["best"]) == ("small", 9, best)
    assert "no runs" in call("ls", "runs", "--runs", runs / "none").stdout
    assert read_json("ls", "--runs", runs / "none") == []


def test_ls_of_registries():
    assert "ties" in {row["method"] for row in read_json("ls", "methods")}
    assert {row["engine"] for row in read_json("ls", "engines")} >= {"hf", "vllm"}
    samplers = read_csv("ls", "samplers")
    assert {row["sampler"] for row in samplers} >= {"cmaes", "tpe", "random"}
    assert all(row["about"] for row in samplers)


def test_no_reader_writes_into_the_run(made):
    _, runs = made

    def listing() -> dict[str, tuple[int, int]]:
        return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in runs.rglob("*")}

    before = listing()
    for args in (["trials"], ["best"], ["status"], ["show", "small", "0"]):
        call(*(args if len(args) > 1 else [*args, "small"]), "--runs", runs)
    assert listing() == before
