"""The simulator of racing, on drawn tables: a search that saves nothing, and one that does."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.scripts.loading import ROOT, load_script

if TYPE_CHECKING:
    from pathlib import Path

ITEMS, GENES, TRIALS = 100, 3, 19


def tables(path: Path) -> None:
    """Write candidates whose margins fall with the distance from a point, by an amount of each item's own."""
    rng = np.random.default_rng(0)
    items = 2 * ITEMS
    genes = rng.random((60, GENES))
    distance = ((genes - 0.7) ** 2).sum(axis=1)
    hard, slope = rng.normal(0, 0.5, items), rng.uniform(0.5, 2.0, items)
    near = np.array([0.2, 0.5])
    np.savez_compressed(
        path,
        genes=genes,
        margins=(0.5 + hard - distance[:, None] * slope).astype(np.float32),
        baselines=(0.5 + hard - near[:, None] * slope).astype(np.float32),
        names=np.array(["a", "b"]),
        keys=np.array([f"{i:04d}" for i in range(items)]),
        tasks=np.arange(items) % 2,
        holdout=np.arange(items) >= ITEMS,
        seconds=np.array([0.1, 0.1, 1.0]),
    )


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "whole"])
def test_a_growing_number_of_items_saves_and_the_full_search_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "bench")
    racing = load_script("bench/racing")
    tables(tmp_path / "tables.npz")
    out = tmp_path / "figures.json"
    options = [
        "--seeds",
        "2",
        "--trials",
        str(TRIALS),
        "--population",
        "6",
        "--arms",
        "items_growth",
        "racing",
    ]
    command = ["racing.py", "--tables", str(tmp_path / "tables.npz"), "--json", str(out), *options]
    monkeypatch.setattr(sys, "argv", command)
    if not whole:  # what is printed of the recorded candidates themselves takes most of the time
        monkeypatch.setattr(racing, "on_the_tables", lambda tables: None)
    racing.main()
    printed = capsys.readouterr().out
    assert ("groups of ten recorded candidates" in printed) is whole
    found = json.loads(out.read_text())
    rows = {row["arm"]: row for row in found["rows"]}
    assert set(rows) == {"full", "racing", "items_growth"} and "| items_growth |" in printed
    full = rows["full"]
    assert full["items per candidate"] == ITEMS and full["saved at equal trials"] == 1.0
    assert full["items saved, search"] == [1.0, 1.0, 1.0] and float(full["settled"]) == 0
    assert rows["items_growth"]["items per candidate"] < ITEMS
    assert rows["items_growth"]["saved at equal trials"] > 1.0
    for traces in found["traces"].values():
        for trace in traces:
            assert trace["items"] == sorted(trace["items"]) and trace["trials"] == sorted(trace["trials"])
            assert trace["search"] == sorted(trace["search"]), "the best so far never falls"
            assert all(0 <= value <= 1 for value in trace["holdout"])
    assert found["traces"]["full"][0]["items"][-1] == ITEMS * TRIALS
    assert 0.8 < found["surrogate"]["agreement"] <= 1
