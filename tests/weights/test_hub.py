"""Folders are real; the hub is huggingface_hub itself, offline, on a cache that the test lays out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evolve.errors import ModelError
from evolve.types import Parent
from evolve.weights.hub import resolve
from tests.tiny import make_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"

IN_CACHE = """
import json, sys
from evolve.errors import ModelError
from evolve.weights.hub import resolve
from evolve.weights.reader import open_model
try:
    parent = resolve("math", sys.argv[1])
    print(json.dumps([parent.path, parent.revision, parent.source, len(open_model(parent.path).specs)]))
except ModelError as error:
    print("ModelError", error)
"""


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """Return the environment of a process whose hub cache holds ``org/tiny``."""
    home = tmp_path_factory.mktemp("hub")
    repo = home / "hub" / "models--org--tiny"
    make_model(repo / "snapshots" / COMMIT, layers=1)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def in_cache(source, env, cwd):
    done = subprocess.run(
        [sys.executable, "-c", IN_CACHE, source], env=env, cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_hub_id_is_pinned_to_its_commit(hub, tmp_path):
    for source in ("org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"):
        path, revision, kept, tensors = json.loads(in_cache(source, hub, tmp_path))
        assert (revision, kept, tensors) == (COMMIT, source, 11)
        assert Path(path).is_absolute()


def test_not_in_the_hub(hub, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    message = in_cache("org/absent", hub, tmp_path)
    assert message.startswith("ModelError models.math: org/absent: no such folder (")
    assert "not in the hub" in message
    assert "did you mean 'base'" in in_cache("bsae", hub, tmp_path)
    assert "not in the hub" in in_cache("org/tiny@v9", hub, tmp_path)


def test_a_folder_becomes_absolute(tmp_path, monkeypatch):
    folder = tmp_path / "modèles mit Raum" / "a b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = "modèles mit Raum/a b"
    assert resolve("x", source) == Parent("x", source, str(folder))
    assert resolve("x", str(folder)).path == str(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("x", f"~/{source}").path == str(folder)


def test_a_typo_beside_models_is_a_path_and_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = tmp_path / "models" / "base"
    make.mkdir(parents=True)
    shutil.copy(Path(__file__), make / "config.json")
    (tmp_path / "models" / "notes").mkdir()
    with pytest.raises(ModelError, match=r"no such folder: .*/models/bsae \(did you mean 'base'\?\)"):
        resolve("base", "models/bsae")
    with pytest.raises(ModelError, match=r"no such folder: .*/no/such/deep"):
        resolve("base", "./no/such/deep")
    with pytest.raises(ModelError, match="is a file"):
        resolve("base", "models/base/config.json")
    with pytest.raises(ModelError, match=r"LoRA parents .* not supported"):
        resolve("base", "models/base+adapter")
    for empty in ("", " "):
        with pytest.raises(ModelError):
            resolve("base", empty)
