"""The benchmark of vocabularies counts the same bytes for every tokenizer, and goes on where it was."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from evolve.weights.reader import open_model
from tests.scripts.loading import ROOT, load_script
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the hen\nand ten ants in the sea", "one", " and the rat", "red ties and nets in the end " * 20]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return load_script("bench/vocabulary")


def test_bits_per_byte_of_a_model_that_knows_nothing(tmp_path: Path, bench: Any) -> None:
    """All logits are 0, so each token costs log2 of the vocabulary; the tokens are counted by hand."""
    from dataclasses import replace

    model = open_model(make_model(tmp_path / "model"))
    blank = replace(model, tensor=lambda name: 0 * model.tensor(name))
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    found = bench.measured(blank, dict.fromkeys(bench.TEXTS, (path, path)), length=60)
    # The text of one word and the one that begins with a space have no first word to follow.
    counted = [TEXTS[0][3:], TEXTS[3][:60][3:]]
    backend = bench.load_tokenizer(model.files, model.config).backend
    tokens = sum(len(backend.encode(text).ids) for text in counted)
    size = sum(len(text) for text in counted)
    assert found["licences"] == pytest.approx(math.log2(128) * tokens / size, rel=1e-5)
    assert found["bytes_a_token"] == pytest.approx(size / tokens)


def test_what_was_measured_is_read_again(tmp_path: Path, bench: Any, capsys: Any) -> None:
    rows = [
        {
            "setting": "a",
            "arm": arm,
            "seed": seed,
            "when": when,
            "licences": 2.0 + seed / 10 - 0.5 * (arm == "random"),
            "docstrings": 3.0,
            "bytes_a_token": 1.0,
        }
        for arm in ("off", "random")
        for seed in range(3)
        for when in bench.WHEN
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps(rows))
    assert bench.earlier(path, "a") == rows
    assert bench.earlier(path, "b") == []
    bench.report(rows)
    lines = capsys.readouterr().out.splitlines()
    off, random = (line for line in lines if line.startswith(("| off", "| random")))
    # 2.0, 2.1, 2.2: half a width of t(0.975, 2) * 0.1 / sqrt(3); paired, the difference has none.
    assert f"2.100 ± {4.30 * 0.1 / math.sqrt(3):.3f}" in off
    assert "| -0.500 ± 0.000 |" in random
