"""The benchmark on SmolLM2 trains on nothing that names a held-out term, over an invented ontology."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.scripts.loading import ROOT, load_script
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

KEPT = {"Gaze palsy", "Seizure", "Ectopia"}


@pytest.fixture
def definitions() -> Any:
    return load_script("bench/medical_definitions")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return load_script("bench/continual_smollm2")


def _term(name: str, definition: str = "", *more: str) -> str:
    lines = [f"[Term]\nid: HP:1\nname: {name}"]
    if definition:
        lines.append(f'def: "{definition}" [somebody:1]')
    return "\n".join([*lines, *more]) + "\n\n"


def _ontology() -> str:
    return "format-version: 1.2\n\n" + "".join(
        (
            _term("Gaze palsy", "The eyes do not move.", 'synonym: "Supranuclear stare" EXACT []'),
            _term("Seizure", "A sudden \\\"storm\\\" in the brain.", 'synonym: "SZ" EXACT []'),
            _term("Ectopia", "", 'synonym: "Lens" RELATED []'),
            _term("Squint", "The eyes look apart."),
            _term("Old sign", "Gone.", "is_obsolete: true"),
            _term("Tonic spell", "A kind of seizures, at night."),
            _term("Fixed look", "As in GAZE  palsy of old age."),
            _term("Wide stare", "A mild supranuclear stare."),
            _term("Ectopia of a lens", "It is elsewhere."),
            _term("Ptosis", "Not an ectopian seizurelike sign; SZ and the lens are spared."),
            _term("Other storm", 'A sudden storm in the brain.'),
            _term("Nothing known"),
        )
    ) + "[Typedef]\nid: part_of\nname: part of\n"  # fmt: skip


def test_no_training_text_names_a_held_out_term(definitions: Any) -> None:
    terms = definitions.terms_of(_ontology())
    assert [term.name for term in terms][:4] == ["Gaze palsy", "Seizure", "Ectopia", "Squint"]
    assert len(terms) == 11 and terms[0].synonyms == ("Supranuclear stare",) and not terms[2].synonyms
    parts = definitions.split(terms, lambda name: name in KEPT)
    # A plural, another case, a synonym, a name within a name, the same definition: all are out. Parts of
    # words, abbreviations and synonyms that are only related are not names.
    assert parts.train == [
        "Squint. The eyes look apart.",
        "Ptosis. Not an ectopian seizurelike sign; SZ and the lens are spared.",
    ]
    assert parts.held_out == [
        "Gaze palsy. The eyes do not move.",
        'Seizure. A sudden "storm" in the brain.',
    ]
    assert parts.left_out == 5


def test_the_terms_that_are_asked_for_are_held_out(bench: Any) -> None:
    """The task and the split have one rule."""
    systems = bench.experts.SYSTEMS
    text = _term("Phenotypic abnormality").replace("HP:1\n", "HP:0000118\n")
    for place, branch in enumerate(systems):
        text += f"[Term]\nid: HP:9{place:02}\nname: {branch}\nis_a: HP:0000118 ! top\n\n"
        for n in range(60):
            name = f"Sign {place} {n}"
            text += f'[Term]\nid: HP:8{place:02}{n}\nname: {name}\ndef: "So it is {place}, {n}." []\n'
            text += f"is_a: HP:9{place:02} ! branch\n\n"
    asked = {one["question"].split(": ")[1].split(".")[0] for one in bench.experts.medicine(text).items}
    parts = bench.split(bench.terms_of(text), bench.experts.held_out)
    trained, held = ({line.split(". ")[0] for line in lines} for lines in (parts.train, parts.held_out))
    assert len(asked) > 100 and asked <= held and not asked & trained and len(trained) > 400


def _entry(arm: str, seed: int, domain: list[float], third: list[float], right: list[int]) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "domain": {"bits": domain, "sizes": [10, 20], "tokens": 10 if arm == "start" else 8},
        "third": {"bits": third, "sizes": [5, 5], "tokens": 3},
        "right": right,
    }


def test_the_table_is_paired_with_the_start(bench: Any) -> None:
    found = [
        _entry("start", 0, [20.0, 30.0], [5.0, 5.0], [1, 0, 0, 0]),
        _entry("cpt", 0, [14.0, 20.0], [6.0, 7.0], [1, 1, 0, 0]),
        _entry("cpt", 1, [12.0, 20.0], [6.0, 7.0], [1, 1, 0, 0]),
    ]
    start, cpt = ([cell.strip() for cell in line.split("|")[2:-1]] for line in bench.report(found)[2:])
    assert start[:6] == ["1.667", "", "1.000", "", "", "0.250 [0.046, 0.699]"]
    assert cpt[0] == f"{33 / 30:.3f}" and cpt[2] == "1.300" and cpt[4] == "20.0 %"
    # Differences -7 of 10 bytes and -10 of 20: the ratio is -17/30, what is left of it -4/3 and 4/3.
    half = 12.7062 * math.sqrt(2 * 2 * (4 / 3) ** 2) / 30
    assert cpt[1] == f"-0.567 ± {half:.3f}"
    assert cpt[5].startswith("0.500 [0.1") and cpt[6].startswith("+0.250 [")


def test_the_interval_of_a_ratio_covers_it(bench: Any) -> None:
    """Documents of unequal length: 95 of 100 intervals hold the ratio of the expectations."""
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        sizes = draw.integers(50, 500, 60).astype(float)
        bits = sizes * (0.8 + 0.2 * draw.standard_normal(60))
        value, half = map(float, bench.per_byte(bits, sizes).split(" ± "))
        inside += abs(value - 0.8) <= half
    assert 0.92 < inside / 400 < 0.98


@pytest.mark.slow
def test_every_arm_runs_on_a_tiny_model_and_is_read_again(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = make_model(tmp_path / "base", layers=1)
    out = tmp_path / "out"
    out.mkdir()
    lines = [f"the {one} palsy of {two} and {three}" for one in "abcdef" for two in "mnop" for three in "xyz"]
    for name in ("domain", "held_out", "general", "third"):
        texts = lines if name in ("domain", "held_out") else [line.replace("palsy", "hen") for line in lines]
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    items = [{"question": f"the {one}", "choices": ["palsy", "hen", "x", "y"], "answer": 0} for one in "abcd"]
    (out / "task.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    path = tmp_path / "found.json"
    command = ["continual_smollm2.py", "--base", str(base), "--out", str(out), "--json", str(path)]
    numbers = ["--bytes", "1400", "--batch", "1", "--new-tokens", "4", "--rate", "1e-3", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*command, *numbers])
    bench.main()
    found = {entry["arm"]: entry for entry in json.loads(path.read_text())}
    assert list(found) == list(bench.ARMS)
    assert found["extension"]["domain"]["tokens"] < found["start"]["domain"]["tokens"]
    sizes = {tuple(entry["domain"]["sizes"]) for entry in found.values()}
    assert len(sizes) == 1
    stages = [one for one in (tmp_path / "cache/evolve/stages").iterdir() if one.is_dir()]
    logs = [json.loads((one / "training.json").read_text())["data"] for one in stages]
    assert sorted(log["data_bytes"] + log.get("replay_bytes", 0) for log in logs) == [1400] * 4
    assert sorted(log.get("replay_bytes", 0) > 0 for log in logs) == [False, False, True, True]
    domain = {arm: sum(entry["domain"]["bits"]) for arm, entry in found.items()}
    assert domain["cpt"] < domain["control"]
    printed = capsys.readouterr().out
    monkeypatch.setattr(bench, "measured", None)
    bench.main()
    assert capsys.readouterr().out == printed[printed.index("| arm") :]
    monkeypatch.setattr(sys, "argv", [*command, "--bytes", "1500"])
    with pytest.raises(SystemExit, match=r"general\.jsonl has 1440 bytes, fewer than the 1500"):
        bench.main()
