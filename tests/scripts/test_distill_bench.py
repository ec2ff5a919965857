"""The benchmark against TRL's trainer: both sides train on the same, and what is written can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.loading import ROOT, load_script
from tests.tiny import make_model

SCRIPT = ROOT / "scripts/bench/distill.py"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script("bench/distill")


def rounds():
    """Return three rounds in which the peer takes 2, 3 and 4 times our time."""
    return [
        {
            "tokens": 1000,
            "ours": {"wall": 0.5, "cpu": 0.25, "peak": 100.0},
            "trl": {"wall": 0.5 * ratio, "cpu": 0.25 * ratio, "peak": 300.0},
        }
        for ratio in (4, 2, 3)
    ]


def test_ratios_are_those_of_the_rounds(bench):
    found = {"losses": {"ours": [2.0, 1.0], "trl": [2.0, 1.00001]}, "rounds": rounds(), "limit": 50.0}
    said = bench.sentence("x", found)
    assert "2000 tokens/s, TRL 667" in said
    assert "wall time TRL / ours 3.000 [2.000, 4.000]" in said and "1.0e-05 apart" in said
    seconds, cpu, memory = bench.rows_of_result("x", found)
    assert (seconds.ours, seconds.peer, seconds.ratio) == pytest.approx((0.5, 1.5, 3.0))
    assert cpu.ratio == pytest.approx(3.0)
    assert (memory.ours, memory.peer, memory.limit) == (100.0, 300.0, 50.0)


def test_our_side_trains_on_the_rows_in_their_order(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    for seed, name in enumerate(("student", "teacher")):
        make_model(tmp_path / name, seed=seed, layers=1)
    rows = [[5, 6, 7, 8], [9, 10, 11], [12, 13], [20, 21, 22, 23, 24], [30, 31], [40, 41, 42]]
    job = {
        "student": str(tmp_path / "student"),
        "teacher": str(tmp_path / "teacher"),
        "rows": rows,
        "function": "kl",
        "length": 16,
        "vocabulary": 128,
        "rate": 0.0,
        "batch": 2,
        "pause": 1,
        "warmup": 2,
        "threads": 1,
        "folder": str(tmp_path / "work"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [
        sys.executable,
        str(Path(SCRIPT).with_name("one_distill.py")),
        str(tmp_path / "job.json"),
        "ours",
    ]
    done = subprocess.run(command, input="\n\n\n", capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    first, last = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert last.keys() == {"wall", "cpu", "peak"} and last["wall"] > 0
    # The losses by hand: one row at a time, all at float64.
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float64)
        for name in ("student", "teacher")
    )
    for step, loss in enumerate(first["losses"]):
        nats = count = 0.0
        for row in rows[2 * step : 2 * step + 2]:
            with torch.no_grad():
                log_p, log_q = (
                    one(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
                    for one in (teacher, student)
                )
            nats += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(row) - 1
        assert loss == pytest.approx(nats / count, rel=1e-4)


@pytest.mark.slow
def test_both_sides_on_models_of_the_shape_of_smollm2(tmp_path):
    trl = ROOT / ".venv-trl"
    if not (trl / ".complete").exists():
        pytest.skip("scripts/oracle/trl_env.sh has not been run")
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--shapes", "smollm2", "--functions", "kl", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    losses = found["runs"]["smollm2, kl"]["losses"]
    assert losses["ours"] == pytest.approx(losses["trl"], rel=1e-4)
    assert {row["figure"].rpartition(", ")[2] for row in found["rows"]} >= {"MiB at the peak"}
