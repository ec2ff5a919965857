"""The verb ``evolve capture`` on a tiny model, and what a teacher of it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from evolve.cli.main import cli
from evolve.stages.distill.capture_text import end_token, text_documents
from evolve.stages.distill.captured import Captured
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


def lines(folder: Path) -> Path:
    path = folder / "text.jsonl"
    texts = ["the hen", "", "naïve — 東京 🙂", "x" * 50, "and on"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def run(*arguments: object) -> tuple[int, str]:
    # As a person sees it: errors are messages with a code.
    result = CliRunner().invoke(cli, ["capture", *map(str, arguments)], standalone_mode=True)
    return result.exit_code, result.output


def test_a_text_is_captured_and_captured_once(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    data = lines(tmp_path)
    arguments = (tmp_path / "m", tmp_path / "out", "--data", data, "--top-k", 5, "--max-length", 20)
    code, output = run(*arguments, "--temperature", 2)
    assert code == 0, output
    assert "tokens/s" in output and "bytes a token (all logits in 16 bits: 256)" in output
    captured = Captured(tmp_path / "out")
    assert captured.key.temperatures == (1.0, 2.0) and captured.key.top_k == 5
    model = open_model(tmp_path / "m")
    tokenizer = load_tokenizer(model.files, model.config)
    found = list(text_documents(data, tokenizer, end_token(model, tokenizer), 20))
    assert captured.summary["documents"] == len(found) > 5
    assert all(captured.find(one) is not None for one in found)
    code, output = run(*arguments, "--temperature", 2)
    assert code == 0 and "tokens/s" not in output, "nothing is asked twice"
    code, output = run(*arguments)
    assert code == 2 and "holds another capture (temperatures" in output


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    data = lines(tmp_path)
    code, output = run(
        tmp_path / "m", tmp_path / "o", "--data", data, "--backend", "vllm", "--temperature", 2
    )
    assert code == 2 and "temperature 1 alone" in output
    code, output = run(tmp_path / "no", tmp_path / "o", "--data", data)
    assert code == 2 and "no such folder" in output
    (tmp_path / "empty.txt").write_text("")
    code, output = run(tmp_path / "m", tmp_path / "o", "--data", tmp_path / "empty.txt")
    assert code == 2 and "no document" in output


@pytest.mark.parametrize("most", [None, 1, 20, 33, 10_000])
def test_documents_are_the_text_in_parts(tmp_path: Path, most: int | None) -> None:
    make_model(tmp_path / "m")
    model = open_model(tmp_path / "m")
    tokenizer = load_tokenizer(model.files, model.config)
    assert end_token(model, tokenizer) == 2
    whole = [id for one in text_documents(lines(tmp_path), tokenizer, 2, 10_000) for id in one.tolist()]
    parts = list(text_documents(lines(tmp_path), tokenizer, 2, 16, most))
    flat = np.concatenate(parts).tolist()
    assert flat == whole[: most or len(whole)]
    assert all(1 <= len(part) <= 16 for part in parts)
