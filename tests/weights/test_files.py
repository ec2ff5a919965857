from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evolve.errors import ModelError
from evolve.weights.files import SideFiles, contents, read_json, read_side_files, with_changes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("x")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("no side file")
    return tmp_path


def test_changes_stand_in_the_place_of_files(folder: Path) -> None:
    assert contents(folder) == {name: folder / name for name in ("chat_template.jinja", "tokenizer.json")}
    changed = with_changes(folder, {"tokenizer.json": b"new", "chat_template.jinja": None, "a.model": b"\0"})
    assert contents(changed) == {"a.model": b"\0", "tokenizer.json": b"new"}
    assert read_side_files(changed) == {"a.model": b"\0", "tokenizer.json": b"new"}
    assert (folder / "tokenizer.json").read_text() == "{}"
    # Later changes go over earlier ones, and a file can come back.
    again = with_changes(changed, {"a.model": None, "chat_template.jinja": b"y"})
    assert read_side_files(again) == {"chat_template.jinja": b"y", "tokenizer.json": b"new"}
    assert with_changes(folder, {}) == folder
    assert with_changes(changed, {}) is changed


def test_equal_changes_are_equal_values(folder: Path) -> None:
    one = with_changes(folder, {"b": b"1", "a": None})
    other = with_changes(with_changes(folder, {"a": b"2"}), {"a": None, "b": b"1"})
    assert isinstance(one, SideFiles)
    assert one == other
    assert len({one, other}) == 1


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_json(folder / "nothing.json")
    (folder / "tokenizer.json").write_bytes(b"\xff{}")
    with pytest.raises(ModelError, match="is not valid JSON"):
        read_json(folder / "tokenizer.json")
