"""Blocks and files for tests of generation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evolve.generate.blocks import ApiTeacher, GenerateBlock
from evolve.generate.run import generate

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from evolve.generate.run import Generated


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(path: Path, count: int = 5) -> Path:
    return jsonl(path / "questions.jsonl", [{"question": f"q{n}?", "answer": f"{n}"} for n in range(count)])


def teacher(url: str, **keys: Any) -> ApiTeacher:
    block = ApiTeacher.model_validate({"base_url": url, "model": "expert", "timeout": 5.0, **keys})
    assert block.problems() == []
    return block


def block(**keys: Any) -> GenerateBlock:
    found = GenerateBlock.model_validate(keys)
    assert found.problems() == []
    return found


def rows(generated: Generated) -> list[dict[str, Any]]:
    return [json.loads(line) for line in generated.path.read_text().splitlines()]


def run(tmp_path: Path, url: str, teacher_keys: dict[str, Any] | None = None, **keys: Any) -> Generated:
    """Generate from five questions, unless ``keys`` say something else."""
    if "prompts" not in keys and keys.get("style") != "textbook":
        keys["prompts"] = str(questions(tmp_path))
    return generate(block(**keys), teacher(url, **(teacher_keys or {})), folder=tmp_path / "store")
