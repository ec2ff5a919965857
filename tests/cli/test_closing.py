import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from evolve.cli import closing
from evolve.errors import EvolveError
from evolve.types import outcome_to_json
from tests.cli.kit import call, read_json
from tests.small import make_search


@pytest.fixture
def fresh(monkeypatch):
    """Stands for the fresh process: returns the hot score plus ``off``; counts its calls."""

    class Fresh:
        calls = 0
        off = 0.0
        error: Exception | None = None

        def __call__(self, run, model):
            self.calls += 1
            if self.error:
                raise self.error
            assert (model / "model.safetensors").exists()
            (number,) = [row["number"] for row in read_json("best", run.path, "-k", 1)[:1]]
            task = read_json("show", run.path, number)["tasks"]
            value = task["tiny_choice"]["value"] + self.off
            return {"value": value, "stderr": 0.1, "tasks": {"tiny_choice": {"value": value}}}

    found = Fresh()
    monkeypatch.setattr(closing, "evaluate_fresh", found)
    return found


def test_close_exports_scores_and_reports(run, fresh):
    summary = closing.close(run)
    state = run.state()
    assert state["phase"] == "done"
    assert state["hot_score"] == state["fresh_score"] | {"stderr": state["hot_score"]["stderr"]}
    assert state["hot_score"]["value"] == summary.best.scored("search").value
    report = json.loads((run.path / "report.json").read_text())
    assert report["phase"] == "done"
    assert report["fresh_score"]["value"] == summary.best.scored("search").value
    html = (run.path / "report.html").read_text()
    assert "exported folder, fresh process" in html
    document = yaml.safe_load((run.path / "export" / "recipe.yaml").read_text())
    assert document["pipeline"][0]["merge"]["merge_method"] == "dare_ties"
    assert closing.built_recipe(run.path / "export" / "model") == summary.best.recipe


def test_closing_again_repeats_nothing(run, fresh):
    closing.close(run)
    weights = run.path / "export" / "model" / "model.safetensors"
    before = weights.stat()
    closing.close(run)
    assert fresh.calls == 1
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_best_replaces_the_old_export(run, fresh):
    closing.close(run)
    file = run.path / "export" / "model" / "evolve_recipe.yaml"
    file.write_text("# recipe 0000000000000000, written by evolve\n")
    run.write_state(fresh_score={"recipe": "0000000000000000", "value": 0.1})
    summary = closing.close(run)
    assert fresh.calls == 2
    assert closing.built_recipe(run.path / "export" / "model") == summary.best.recipe
    assert run.state()["fresh_score"]["value"] == summary.best.scored("search").value


def test_another_scoring_is_scored_and_described_anew(run, fresh):
    closing.close(run)
    run.write_state(fresh_score={**run.state()["fresh_score"], "score_key": "another", "value": 0.1})
    card = run.path / "export" / "model" / "README.md"
    before = card.read_text()
    card.write_text("old scores")
    closing.close(run)
    assert fresh.calls == 2
    assert run.state()["fresh_score"]["value"] == run.state()["hot_score"]["value"]
    assert card.read_text() == before


def test_a_folder_that_is_not_ours_is_left_alone(run, fresh):
    (run.path / "export" / "model").mkdir(parents=True)
    (run.path / "export" / "model" / "precious").write_text("x")
    with pytest.raises(EvolveError, match="not empty"):
        closing.close(run)
    assert (run.path / "report.html").exists(), "what the night found out is there"
    assert (run.path / "export" / "model" / "precious").read_text() == "x"


def test_a_fresh_score_that_differs_is_said(run, fresh, caplog):
    fresh.off = 0.05
    closing.close(run)
    assert "do not trust" in caplog.text


def test_a_fresh_process_that_fails_does_not_lose_the_report(run, fresh, caplog):
    fresh.error = EvolveError("it broke")
    closing.close(run)
    assert "it broke" in caplog.text
    assert run.state()["fresh_score"] is None
    assert (run.path / "report.html").exists()
    fresh.error = None
    summary = closing.close(run)
    assert run.state()["fresh_score"]["value"] == summary.best.scored("search").value, (
        "the next time it is tried again"
    )


def test_the_fresh_process_gets_the_run_s_own_config(run, monkeypatch, tmp_path):
    called = {}

    def run_process(command, **options):
        called.update(command=command, **options)
        return subprocess.CompletedProcess(command, 0, json.dumps([{"value": 1}]), "")

    monkeypatch.setattr(closing.subprocess, "run", run_process)
    run.meta["created_in"] = str(tmp_path)
    assert closing.evaluate_fresh(run, run.path / "export" / "model") == {"value": 1}
    assert str(run.path / "config.yaml") in called["command"]
    assert called["cwd"] == tmp_path
    monkeypatch.setattr(
        closing.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 2, "", "a\nthe cause"),
    )
    with pytest.raises(EvolveError, match="the cause"):
        closing.evaluate_fresh(run, run.path)


def test_the_end_says_where_everything_is(run, runs, fresh, capsys, monkeypatch):
    monkeypatch.chdir(runs.parent)
    summary = closing.close(run)
    closing.print_closing(run, summary)
    out = capsys.readouterr().out
    assert "report: läufe hier/small/report.html" in out
    assert "evolve build 'läufe hier/small/export/recipe.yaml' OUT" in out
    assert f"{outcome_to_json(summary.best.search)['value']:.4f} [" in out


def evolve(*args, cwd, **options):
    command = [sys.executable, "-m", "evolve.cli", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_the_main_job_from_the_command_line(tmp_path):
    """Relative folders; run, run again, resume from elsewhere, Ctrl-C."""
    home = tmp_path / "ein ordner ü"
    config = make_search(home)
    document = yaml.safe_load(config.read_text())
    document["models"] = {name: name for name in document["models"]}
    document["score"]["include_path"] = "tasks"
    config.write_text(yaml.safe_dump(document, sort_keys=False))
    first = evolve("run", "small.yaml", cwd=home)
    assert first.returncode == 0, first.stderr
    assert "evolve build runs/small/export/recipe.yaml OUT" in first.stdout
    state = json.loads((home / "runs" / "small" / "state.json").read_text())
    assert state["hot_score"]["value"] == state["fresh_score"]["value"]
    trials = read_json("trials", home / "runs" / "small")
    assert sum(trial["state"] == "complete" for trial in trials) == 9
    again = evolve("run", "small.yaml", cwd=home)
    elsewhere = evolve("resume", home / "runs" / "small", cwd=tmp_path)
    assert (again.returncode, elsewhere.returncode) == (0, 0), again.stderr + elsewhere.stderr
    assert read_json("trials", home / "runs" / "small") == trials
    changed = evolve("run", "small.yaml", "search.trials=12", cwd=home)
    assert changed.returncode == 2
    assert "search.trials: 9 -> 12" in changed.stderr
    call("build", home / "runs" / "small" / "export" / "recipe.yaml", home / "x", code=2)
    assert evolve("build", "runs/small/export/recipe.yaml", "x", cwd=home).returncode == 0


@pytest.mark.slow
def test_ctrl_c_is_130_and_the_next_start_goes_on(tmp_path):
    config = make_search(tmp_path, **{"search.trials": 400})
    command = [sys.executable, "-m", "evolve.cli", "run", str(config), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    study = tmp_path / "runs" / "small" / "study" / "journal.log"
    deadline = time.monotonic() + 120
    while not (study.exists() and study.stat().st_size > 20_000):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert read_json("status", tmp_path / "runs" / "small")["working"] is False
