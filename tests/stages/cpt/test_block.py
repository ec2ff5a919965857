from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evolve.config.files import files
from evolve.config.plain import plain, ranges
from evolve.stages.cpt.block import CptBlock

WHOLE: dict[str, Any] = {
    "name": "adapted",
    "model": "base",
    "enabled": {"choices": [False, True]},
    "dataset": {"path": "data/domain.jsonl", "max_bytes": 4_000_000, "max_length": 256, "packing": True},
    "replay": {
        "path": "data/general.jsonl",
        "share": {"low": 0.005, "high": 0.5, "log": True, "off_below": 0.01},
    },
    "curriculum": {"order": "base_loss", "reverse": False, "pacing": {"low": 0.1, "high": 1.0}},
    "phases": [
        {"until": {"low": 0.0, "high": 0.1}, "train": "new_embeddings"},
        {"until": 0.8, "train": "all", "learning_rate_scale": {"embed_tokens": 0.5}},
        {"until": 1.0, "train": "all", "replay_share_scale": 0.5},
    ],
    "regularizers": {
        "ewc": {
            "weight": {"low": 0.01, "high": 100.0, "log": True, "off_below": 0.02},
            "path": "data/general.jsonl",
            "samples": 256,
        },
        "l2sp": {"weight": 0.0},
        "lwf": {"weight": 0.0, "temperature": 1.0},
    },
    "wise_ft": {"alpha": {"low": 0.0, "high": 1.0}},
}


def changed(**changes: Any) -> CptBlock:
    return CptBlock.model_validate({**WHOLE, **changes})


def test_the_block_of_the_reference() -> None:
    block = changed()
    assert block.problems() == []
    assert [".".join(map(str, path)) for path, _ in ranges(block)] == [
        "enabled",
        "replay.share",
        "curriculum.pacing",
        "phases.0.until",
        "regularizers.ewc.weight",
        "wise_ft.alpha",
    ]
    assert [".".join(map(str, path)) for path, _ in files(block)] == ["dataset", "replay", "regularizers.ewc"]
    assert CptBlock.model_validate(plain(block)) == block


def test_text_that_the_model_writes_is_no_file() -> None:
    block = changed(replay={"self_generated": 2000, "share": 0.1})
    assert block.problems() == []
    assert [path for path, _ in files(block)] == [("dataset",), ("regularizers", "ewc")]


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"replay": {"share": 0.1}}, ("replay",), "one of"),
        ({"replay": {"path": "a", "self_generated": 3}}, ("replay",), "one of"),
        ({"replay": {"path": "a", "share": 0.95}}, ("replay", "share"), "from 0 to 0.9"),
        (
            {"replay": {"path": "a", "share": {"low": -0.1, "high": 0.5}}},
            ("replay", "share"),
            "from 0 to 0.9",
        ),
        ({"phases": [{"until": 0.5}]}, ("phases", 0, "until"), "goes to the end"),
        ({"phases": [{"until": 0.5}, {"until": 0.2}, {"until": 1.0}]}, ("phases", 1, "until"), "before, 0.5"),
        ({"phases": [{"until": 1.5}]}, ("phases", 0, "until"), "from 0 to 1, got 1.5"),
        ({"phases": [{"until": 1.0, "train": []}]}, ("phases", 0, "train"), "names nothing"),
        (
            {"phases": [{"until": 1.0, "train": {"top_layers": {"low": -1, "high": 2}}}]},
            ("phases", 0, "train", "top_layers"),
            "0 or more",
        ),
        ({"curriculum": {"order": "length", "pacing": 0.0}}, ("curriculum", "pacing"), "above 0"),
        ({"wise_ft": {"alpha": 1.1}}, ("wise_ft", "alpha"), "from 0 to 1"),
        ({"regularizers": {"l2sp": {"weight": -1.0}}}, ("regularizers", "l2sp", "weight"), "0 or more"),
        ({"dataset": {"path": "a", "max_bytes": 0}}, ("dataset", "max_bytes"), "1 or more"),
        (
            {"replay": {"self_generated": {"choices": [0, 8]}, "share": 0.1}},
            ("replay", "self_generated"),
            "1 or more",
        ),
        (
            {"regularizers": {"ewc": {"weight": 1.0, "path": "a", "samples": {"low": 0, "high": 8}}}},
            ("regularizers", "ewc", "samples"),
            "1 or more",
        ),
    ],
)
def test_problems(changes: dict[str, Any], path: tuple[str | int, ...], message: str) -> None:
    found = changed(**changes).problems()
    assert path in [place for place, _ in found]
    assert message in dict(found)[path]


def test_unknown_names() -> None:
    with pytest.raises(ValidationError, match=r"regularizers\.ewcc"):
        changed(regularizers={"ewcc": {"weight": 1.0}})


def test_what_changes_nothing_is_dropped() -> None:
    filled = plain(
        changed(), fill=lambda path, value: {"share": 0, "pacing": 1}.get(str(path[-1]), 0), defaults=False
    )
    found = CptBlock.effective(filled)
    assert "replay" not in found
    assert "curriculum" not in found
    assert "regularizers" not in found
    assert found["wise_ft"] == {"alpha": 0}
    assert [phase["until"] for phase in found["phases"]] == [0.8, 1.0]
    kept = CptBlock.effective({**filled, "replay": {"path": "a"}, "wise_ft": {"alpha": 1}})
    assert kept["replay"] == {"path": "a"}, "a share that is not written is the default, not 0"
    assert "wise_ft" not in kept
