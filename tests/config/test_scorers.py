from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from evolve.config.json_schema import json_schema
from evolve.config.load import load
from evolve.errors import ConfigError
from evolve.registry import SCORERS
from evolve.validation import check
from tests.small import make_search

if TYPE_CHECKING:
    from pathlib import Path


def edited(tmp_path: Path, *scorers: Any, tasks: bool = True) -> Path:
    path = make_search(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["score"]["scorers"] = list(scorers)
    if not tasks:
        del data["score"]["tasks"]
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def problems(path: Path) -> dict[str, tuple[str, str]]:
    """Return path inside the config to place and message."""
    with pytest.raises(ConfigError) as caught:
        check(load(path))
    return {one.path: (one.where, one.message) for one in caught.value.problems}


def test_scorers_stand_beside_tasks_or_alone(tmp_path: Path) -> None:
    path = edited(tmp_path, {"size": {"weight": 0.1}}, {"latency": {"name": "speed", "weight": 0}})
    score = load(path).config.score
    assert score is not None
    assert [tuple(entry) for entry in score.counted[-2:]] == [
        ("size", "billion_parameters", 0.1, None),
        ("speed", "seconds", 0.0, None),
    ]
    alone = edited(tmp_path, {"size": {}}, tasks=False)
    assert check(load(alone)).facts.items == {"size": (1, 1)}


def test_every_mistake_has_its_place(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        {"sise": {}},
        {"size": {"weigth": 1}},
        {"latency": {"repeats": 0}},
        "size",
        {"bits_per_byte": {"name": "text"}},
    )
    found = problems(path)
    assert found.keys() == {
        "score.scorers.0.sise",
        "score.scorers.1.size.weigth",
        "score.scorers.2.latency.repeats",
        "score.scorers.3",
        "score.scorers.4.bits_per_byte.path",
    }
    assert "did you mean 'size'?" in found["score.scorers.0.sise"][1]
    lines = path.read_text().splitlines()
    for key, word in (("score.scorers.0.sise", "sise"), ("score.scorers.1.size.weigth", "weigth")):
        _, line, column = found[key][0].rsplit(":", 2)
        assert lines[int(line) - 1][int(column) - 1 :].startswith(word)


def test_files_and_functions_are_looked_at_before_anything_expensive(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        {"bits_per_byte": {"path": str(tmp_path / "no.txt")}},
        {"python": {"function": "no.py:score", "metric": "x"}},
    )
    found = problems(path)
    assert found.keys() == {"score.scorers.0.bits_per_byte.path", "score.scorers.1.python.function"}
    line = int(found["score.scorers.0.bits_per_byte.path"][0].rsplit(":", 2)[1])
    assert "no.txt" in path.read_text().splitlines()[line - 1]


@pytest.mark.parametrize(
    ("scorers", "message"),
    [
        ([{"size": {}}, {"size": {}}], "two entries are named 'size'"),
        ([{"size": {"name": "tiny_choice"}}], "two entries are named 'tiny_choice'"),
    ],
)
def test_names_are_taken_once(tmp_path: Path, scorers: list[Any], message: str) -> None:
    assert any(message in text for _, text in problems(edited(tmp_path, *scorers)).values())


def test_something_must_be_scored(tmp_path: Path) -> None:
    assert any("nothing to score" in text for _, text in problems(edited(tmp_path, tasks=False)).values())


def test_the_schema_for_editors_knows_every_scorer() -> None:
    schema = json_schema()
    items = schema["$defs"]["ScoreConfig"]["properties"]["scorers"]["items"]
    assert {option["title"] for option in items["oneOf"]} == set(SCORERS.names())
    assert "chunk_bytes" in json.dumps(schema)


def test_names_of_models_in_a_scorer_are_what_they_stand_for(tmp_path: Path) -> None:
    score = load(
        edited(
            tmp_path,
            {"kl_to_teacher": {"model": "one", "path": "text.txt"}},
            {"speculative": {"target": "elsewhere/big", "prompts": "p.jsonl"}},
        )
    ).config.score
    assert score is not None
    [first, second] = score.scorers
    assert first["kl_to_teacher"]["model"] == str(tmp_path / "one")
    assert second["speculative"]["target"] == "elsewhere/big"
