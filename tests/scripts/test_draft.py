"""The benchmark of drafts counts cycles and times as vLLM has them, a row a draft."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from tests.scripts.loading import load_script

bench = load_script("bench/draft")

K, REPEATS = 4, 3
# 2 texts of 21 tokens: the first token of each comes without a draft, so 40 tokens come from cycles.
TARGET = {"prompts": 2, "tokens": 42, "seconds": [4.2, 8.4, 4.1]}


def parts(cycles: int, accepted: int, seconds: float) -> dict[str, dict[str, Any]]:
    drafted = K * cycles
    counters = {"num_drafts": cycles, "num_draft_tokens": drafted, "num_accepted_tokens": accepted}
    return {
        "draft": {"prompts": 2, "tokens": 42, "seconds": [1.05, 1.05, 9.0]},
        "both": {"prompts": 2, "tokens": 42, "seconds": [seconds] * 3, **counters},
        "predicted": {"length": 2.4, "rate": 0.35, "cost": 0.5},
    }


def test_figures_are_of_all_runs_and_by_the_median() -> None:
    found = bench.figures(TARGET, parts(cycles=48, accepted=72, seconds=2.1), K, REPEATS)
    # 3 runs of 40 tokens in 48 cycles; the counters hold all runs.
    assert found.length == pytest.approx(2.5)
    assert found.counted == pytest.approx(2.5)
    assert found.rate == pytest.approx(72 / 192)
    # 100 ms a token alone, 25 ms the draft, 50 ms together.
    assert found.cost == pytest.approx(0.25)
    assert found.faster == pytest.approx(2.0)
    # 2.4 tokens for 4 passes of a quarter and one of the target.
    assert found.said_faster == pytest.approx(1.2)


def test_the_table_has_a_row_for_every_draft() -> None:
    drafts = {
        "drafts/before": parts(cycles=120, accepted=0, seconds=8.4),
        "drafts/after": parts(cycles=48, accepted=72, seconds=2.1),
    }
    options = argparse.Namespace(num_speculative_tokens=K, repeats=REPEATS)
    lines = bench.show(TARGET, drafts, options).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == "| before | 2.400 | 1.000 | 0.350 | 0.000 | 0.500 | 0.250 | 1.200 | 0.500 |"
    assert lines[3] == "| after | 2.400 | 2.500 | 0.350 | 0.375 | 0.500 | 0.250 | 1.200 | 2.000 |"
    assert "target: 100.00 ms a token; 4.10 to 8.40 s a run" in lines
    # (1 - a^5) / (1 - a) = 2 tokens of a cycle pay for 4 quarters of a pass.
    rate = float(lines[-1].rpartition("a rate of ")[2].split()[0])
    assert sum(rate**power for power in range(5)) == pytest.approx(2, abs=0.01)
