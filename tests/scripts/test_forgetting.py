"""The tables of the benchmark of forgetting, on numbers with known answers, and its sweep on a tiny model."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.scripts.loading import ROOT, load_script
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

T2 = 4.302653
"""Student's t at 97.5 % with 2 degrees of freedom."""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return load_script("bench/forgetting")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return load_script("bench/forgetting_tables")


def entry(arm: str, seed: int | None, gain: float, lost: float, alpha: float | None = None) -> dict[str, Any]:
    """The start has 3 bits per byte of the domain and 2 of the general text."""
    return {
        "arm": arm,
        "seed": seed,
        "alpha": alpha,
        "licences": 3.0 - gain,
        "docstrings": 2.0 + lost,
        "topics": 2.5,
    }


def swept(arm: str, seed: int, gain: float, lost: float, power: float) -> list[dict[str, Any]]:
    """Gain grows with alpha, what is lost with its power."""
    return [
        entry(arm, seed, alpha * gain, alpha**power * lost, None if alpha == 1 else alpha)
        for alpha in (1.0, 0.25, 0.5, 0.75)
    ]


def found_of() -> list[dict[str, Any]]:
    found = [entry("start", None, 0, 0)]
    for seed in range(3):
        found += swept("no_replay", seed, 1.0 + seed / 10, 0.4, 1)
        found += swept("replay_50", seed, 0.8, 0.08, 1)
        found.append(entry("control", seed, 0.1, -0.05))
    return found


def cells(lines: list[str], arm: str) -> list[str]:
    return next([cell.strip() for cell in line.split("|")[2:-1]] for line in lines if f"| {arm} |" in line)


def test_gain_and_forgetting_against_start_and_control(tables: Any) -> None:
    lines = tables.arms_table(found_of())
    mine = cells(lines, "no_replay")
    half = T2 * 0.1 / math.sqrt(3)
    assert mine[3:5] == [f"1.100 ± {half:.3f}", "0.400 ± 0.000"]
    # The control gains 0.1 on the domain and becomes better by 0.05 on the general text.
    assert mine[5:] == [f"1.000 ± {half:.3f}", "0.450 ± 0.000"]
    assert cells(lines, "control")[5:] == ["", ""]
    # It is beaten by nothing there, but it is no way to learn the domain.
    assert lines[-1] == "front: replay_50, no_replay"


def test_forgetting_where_a_way_reaches_a_gain(tables: Any) -> None:
    way = [tables.Change(0, 0), tables.Change(0.4, 0.1), tables.Change(0.3, 0.2), tables.Change(0.8, 0.6)]
    assert tables.forgetting_at(way, 0) == 0
    assert tables.forgetting_at(way, 0.2) == pytest.approx(0.05)
    # Reached once more on the way back down; the first time counts.
    assert tables.forgetting_at(way, 0.35) == pytest.approx(0.0875)
    assert tables.forgetting_at(way, 0.55) == pytest.approx(0.4)
    assert tables.forgetting_at(way, 0.81) is None
    # A way that begins by losing on the domain.
    assert tables.forgetting_at([tables.Change(0, 0), tables.Change(-0.1, 0.3)], 0.1) is None


def test_arms_are_compared_at_the_same_gain_of_the_same_seed(tables: Any) -> None:
    lines = tables.matched_table(found_of(), shares=(0.5, 0.95))
    # All seeds of no replay gain 1 or more: so the gains are 0.5 and 0.95. All is linear in alpha.
    lost = [0.4 * 0.5 / (1 + seed / 10) for seed in range(3)]
    other = 0.08 * 0.5 / 0.8
    assert cells(lines, "no_replay")[0] == tables.mean(lost)
    assert cells(lines, "replay_50")[:2] == [f"{other:.3f} ± 0.000", tables.mean([other - x for x in lost])]
    assert cells(lines, "replay_50")[2:] == ["reached in 0 of 3", ""]
    # No way leads to the control, and without the yardstick there is nothing to be held against.
    assert not any("control" in line for line in lines)
    assert tables.matched_table([e for e in found_of() if e["arm"] != "no_replay"]) == []


def test_divergence_beside_the_quadratic_form(tables: Any) -> None:
    found = found_of()
    assert tables.drift_table(found) == []
    for one, value in zip(tables.by_seed(found, "no_replay").values(), (0.12, 0.13, 0.14), strict=True):
        one |= {"kl": value, "penalty": 0.01}
    assert cells(tables.drift_table(found), "no_replay") == [
        f"130.000 ± {T2 * 10 / math.sqrt(3):.3f}",
        "10.000 ± 0.000",
        f"13.000 ± {T2 / math.sqrt(3):.3f}",
    ]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make_model(tmp_path / "start", layers=1)
    return replace(open_model(path), content=content_of(path))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    ends = ("in the sea", "on the red tin", "at one end")
    lines = [f"the {one} and ten {two} {end}" for one in "abcdefgh" for two in "stuvwxyz" for end in ends]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def test_drift_is_the_divergence_and_the_form(bench: Any, start: Any, text: Path) -> None:
    """The divergence against torch's, on the text as one row of sequences; the form summed in Python."""
    from evolve.statistics.corpus import shuffled
    from evolve.training.regularizers.base import Anchor
    from evolve.training.regularizers.ewc import EwcBlock, fisher_of

    moved = replace(start, tensor=lambda name: start.tensor(name) * 1.1)
    block = EwcBlock.model_validate({"path": str(text), "content": file_content(text), "weight": 7.0})
    found = bench.drift(block, start, moved, length=16, seed=3)
    one, names = open_network(start)
    two, _ = open_network(moved)
    lines = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    tokenizer = load_tokenizer(start.files, start.config)
    ids = [id for n in shuffled(len(lines), 3) for id in tokenizer.documents([lines[n]])[0]]
    rows = [ids[place : place + 16] for place in range(0, len(ids), 16)]
    nats = count = 0.0
    with torch.no_grad():
        for row in rows:
            if len(row) > 1:
                before, after = (
                    net(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for net in (one, two)
                )
                nats += float(torch.nn.functional.kl_div(after, before, reduction="sum", log_target=True))
                count += len(row) - 1
    assert found.kl == pytest.approx(nats / count, rel=1e-4) and found.kl > 0
    factors = fisher_of(block, Anchor(start, one, names, 16, 3))
    form = sum(float((factors[own] * (0.1 * start.tensor(name)) ** 2).sum()) for name, own in names.items())
    assert found.penalty == pytest.approx(form / 2, rel=1e-3) and form > 0


def test_a_sweep_trains_nothing_and_is_read_again(
    bench: Any, start: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    texts = dict.fromkeys(("docstrings", "licences", "topics"), (text, text))
    monkeypatch.setattr(bench, "make_texts", lambda folder: texts)
    monkeypatch.setattr(bench, "make_start", lambda *_: start)
    out = tmp_path / "found.json"
    command = ["forgetting.py", "--out", str(tmp_path), "--json", str(out), "--bytes", "5000", "--seeds", "1"]
    arms = ["no_replay", "ewc_10", "wise_ft_50", "control"]
    monkeypatch.setattr(sys, "argv", [*command, "--alphas", "0.5", "--arms", *arms])
    bench.main()
    stages = [path for path in (tmp_path / "cache/evolve/stages").iterdir() if path.is_dir()]
    # A training of no replay, one of EWC, one of the control, which here sees the same text as no replay.
    assert len(stages) == 2
    found = json.loads(out.read_text())
    by_key = {(one["arm"], one["alpha"]): one for one in found[1:]}
    assert {key for key in by_key if key[1]} == {("no_replay", 0.5), ("ewc_10", 0.5)}
    assert by_key["no_replay", 0.5]["licences"] == by_key["wise_ft_50", None]["licences"]
    assert by_key["no_replay", None]["licences"] < by_key["no_replay", 0.5]["licences"] < found[0]["licences"]
    assert 0 < by_key["ewc_10", None]["penalty"] < by_key["no_replay", None]["penalty"]
    printed = capsys.readouterr().out
    assert "at gain" in printed and "1/2 sum F d^2" in printed
    monkeypatch.setattr(bench, "measured", None)
    bench.main()
    assert json.loads(out.read_text()) == found
