"""The benchmark of transfer: its figures on tables with known answers, and a sequence on a tiny model."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.scripts.loading import ROOT, load_script
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return load_script("bench/transfer")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    make_model(folder / "base", layers=1)
    for place in ("texts", "tasks"):
        (folder / place).mkdir()
    for field, word in (("beasts", "hen"), ("towns", "inn"), ("elixirs", "tea")):
        ends = [f"{two} and in the {three}" for two in ("red", "thin") for three in ("sea", "den", "tin")]
        lines = [f"the {word} {one} is {end}" for one in "abcdefghijklmnop" for end in ends]
        for name in (field, f"{field}_heldout"):
            (folder / f"texts/{name}.jsonl").write_text(
                "".join(json.dumps({"text": line}) + "\n" for line in lines)
            )
        items = [
            {"question": f"the {word} {one} is", "choices": ["red", "thin", "at", "on"], "answer": 0}
            for one in "abcd"
        ]
        (folder / f"tasks/{field}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def entries(arm: str, seed: int, table: list[list[float]]) -> list[dict[str, Any]]:
    fields = ("beasts", "towns", "elixirs")
    return [
        {"arm": arm, "seed": seed, "stage": stage}
        | {f"accuracy {field}": value for field, value in zip(fields, row, strict=True)}
        | {f"bits {field}": 3 - value for field, value in zip(fields, row, strict=True)}
        for stage, row in enumerate(table)
    ]


def test_figures_of_a_sequence(bench: Any) -> None:
    (start,) = entries("start", 0, [[0.25, 0.3, 0.4]])
    found = [start, *entries("no_replay", 0, [[0.9, 0.35, 0.4], [0.95, 0.8, 0.5], [0.4, 0.5, 0.7]])]
    # Mean of the last row; halves of 0.4 - 0.9 + 0.5 - 0.8, 0.35 - 0.3 + 0.5 - 0.4, 0.95 - 0.4 + 0.8 - 0.5.
    wanted = [1.6 / 3, -0.4, 0.075, 0.425]
    assert bench.figures_of(found, "no_replay", 0, "accuracy") == pytest.approx(wanted)
    # Bits per byte are 3 minus that: the same moves, and their own mean.
    assert bench.figures_of(found, "no_replay", 0, "bits") == pytest.approx([3 - wanted[0], *wanted[1:]])
    assert bench.figures_of(found[:-1], "no_replay", 0, "bits") is None


def test_differences_are_paired_by_seed(bench: Any) -> None:
    found = entries("start", 0, [[0.25, 0.25, 0.25]])
    for seed in range(3):
        low = seed / 10
        found += entries("no_replay", seed, [[0.9, 0.3, 0.3], [0.9, 0.8, 0.3], [0.4 + low, 0.5, 0.7]])
        found += entries("replay", seed, [[0.9, 0.3, 0.3], [0.9, 0.8, 0.3], [0.6 + low, 0.7, 0.6]])
    lines = bench.report(found, 3)
    accuracy = lines[lines.index(next(line for line in lines if line.startswith("| accuracy | "))) :]
    off, difference = (
        next(line for line in accuracy if line.startswith(f"| {name} |")).split("|")
        for name in ("no_replay", "replay minus no_replay")
    )
    # Backward transfer -0.4, -0.35, -0.3 without; 0.2 more with, in every seed.
    assert off[3].strip() == f"-0.350 ± {4.302653 * 0.05 / math.sqrt(3):.3f}"
    assert difference[3].strip() == "0.200 ± 0.000"
    assert difference[5].strip() == "-0.200 ± 0.000"
    assert "| replay, elixirs | 0.700 | 0.700 | 0.600 |" in lines


@pytest.mark.slow
def test_a_sequence_is_trained_once_and_replays_only_what_was_before(
    bench: Any, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "found.json"
    command = ["transfer.py", "--demo", str(demo), "--out", str(tmp_path / "out"), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "2", "--items", "4", "--json", str(out)])
    bench.main()
    found = json.loads(out.read_text())
    assert [(one["arm"], one.get("stage")) for one in found] == [
        ("start", None),
        *((arm, stage) for arm in ("no_replay", "replay") for stage in range(3)),
    ]
    stages = [path for path in (tmp_path / "cache/evolve/stages").iterdir() if path.is_dir()]
    # Before the first stage there is nothing to replay, so both arms have it.
    assert len(stages) == 5
    logs = [json.loads((path / "training.json").read_text())["data"] for path in stages]
    assert sum("replay_bytes" in log for log in logs) == 2
    assert len({log["data_bytes"] + log.get("replay_bytes", 0) for log in logs}) == 1
    replayed = {
        path.parent.name: sorted(one.stem for one in path.parent.iterdir())
        for path in (tmp_path / "out").glob("*/*.jsonl")
    }
    assert replayed == {"before_towns": ["beasts"], "before_elixirs": ["beasts", "towns"]}
    assert found[1]["bits beasts"] < found[0]["bits beasts"]
    assert "| replay minus no_replay |" in capsys.readouterr().out
    monkeypatch.setattr(bench, "measured", None)
    bench.main()
    assert json.loads(out.read_text()) == found
