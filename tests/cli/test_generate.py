"""``evolve generate`` as a user types it, and what it shows meanwhile."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from evolve.cli.main import cli
from evolve.display.asking import facts, showing
from evolve.generate.progress import Status
from tests.generate.kit import questions
from tests.generate.server import Fault, serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    settings = {
        "teacher": {"base_url": "http://127.0.0.1:1/v1", "model": "expert"},
        "generate": {"prompts": str(questions(tmp_path))},
    }
    path.write_text(json.dumps(settings))
    return path


def call(*args: Any) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["generate", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, f"{result.output}\n{result.exception}"
    return result.exit_code, result.output


def test_generate_and_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    with serving() as server:
        code, text = call(config, out, f"teacher.base_url={server.url}")
        assert code == 0, text
        assert "5 rows, sha256:" in text and "tokens so far" in text and "asking the teacher" in text
        again = call(config, out, f"teacher.base_url={server.url}")
        assert again[0] == 0 and len(server.bodies) == 5
    assert out.read_text().count("\n") == 5
    assert (tmp_path / "rows.answers" / "answers.sqlite").exists()


def test_a_strangers_file_is_not_replaced(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("mine\n")
    code, text = call(config, out)
    assert code != 0 and "--force" in text and out.read_text() == "mine\n"


def test_banned_texts(config: Path, tmp_path: Path) -> None:
    banned = tmp_path / "items.txt"
    banned.write_text("a fine long item of words\n")
    out = tmp_path / "rows.jsonl"
    with serving(reply=lambda body: "It is a fine long item of words.") as server:
        where = f"teacher.base_url={server.url}"
        code, text = call(config, out, where, "--banned", banned)
        assert code != 0 and "needs generate.filters.ngram_overlap" in text
        code, text = call(config, out, where, "generate.filters.ngram_overlap=5", "--banned", banned)
        assert code != 0 and "no row is left" in text and "ngram overlap" in text


def test_what_the_server_says_is_shown_without_a_traceback(config: Path, tmp_path: Path) -> None:
    with serving(fault=lambda body, number: Fault("status", 404)) as server:
        code, text = call(config, tmp_path / "r.jsonl", f"teacher.base_url={server.url}")
    assert code != 0 and "404: it went wrong: no such model" in text


def test_facts_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    status = Status("asking", 3, 10, 1, 2, 1, 1234, 0.5, 10_000, 2.0, 300, 2.0, stopping=True)
    words = ["3 of 10", "1 kept from before", "1,234 of 10,000 tokens", "$0.50 of 2.00", "150 tokens/s"]
    assert facts(status) == [*words, "2 refused or cut off", "1 failed"]
    with showing("plain") as show:
        assert show is not None
        for done in range(11):
            show(Status("asking", done, 10))
        show(Status("done"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["asking the teacher", "asking the teacher", "done"]
    screen = io.StringIO()
    with showing("rich", Console(file=screen, force_terminal=True, width=100)) as show:
        assert show is not None
        show(status)
    assert "3 of 10" in screen.getvalue() and "stopping" in screen.getvalue()
    with showing("none") as show:
        assert show is None
